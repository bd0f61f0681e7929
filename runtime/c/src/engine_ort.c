/* ONNX Runtime on the CPU, with the settings of edgeseg.runtime.engines.ort. */
#include <stdlib.h>
#include <string.h>

#include <onnxruntime_c_api.h>

#include "internal.h"

struct es_engine {
    const OrtApi *api;
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtMemoryInfo *memory;
    OrtValue *image, *logits;
    OrtIoBinding *binding;
};

/* Turns ONNX Runtime's own status, which is released, into ours. */
static int check(const es_engine *engine, OrtStatus *status, int code, char *message) {
    if (status == NULL) return ES_OK;
    es_fail(message, code, "onnxruntime: %.200s", engine->api->GetErrorMessage(status));
    engine->api->ReleaseStatus(status);
    return code;
}

#define TRY(call)                                                             \
    do {                                                                      \
        int tried = check(engine, (call), ES_ERR_ENGINE_LOAD, message);       \
        if (tried != ES_OK) return tried;                                     \
    } while (0)

static int create_session(es_engine *engine, const es_blob *model, int threads, char *message) {
    const OrtApi *api = engine->api;
    TRY(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edgeseg", &engine->env));
    TRY(api->CreateSessionOptions(&engine->options));
    TRY(api->SetIntraOpNumThreads(engine->options, threads));
    TRY(api->SetInterOpNumThreads(engine->options, 1));
    TRY(api->AddSessionConfigEntry(engine->options, "session.intra_op.allow_spinning", "1"));
    TRY(api->CreateSessionFromArray(engine->env, model->bytes, model->count, engine->options,
                                    &engine->session));
    return ES_OK;
}

/* Binds our buffers once, so that a call neither copies nor allocates tensors. */
static int bind(es_engine *engine, const es_engine_job *job, char *message) {
    const OrtApi *api = engine->api;
    const int64_t shape[4] = {1, job->channels, job->height, job->width};
    const int64_t answer[4] = {1, job->classes, job->height, job->width};
    size_t plane = (size_t)job->height * (size_t)job->width * sizeof(float);
    OrtAllocator *allocator;
    char *input = NULL, *output = NULL;
    TRY(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &engine->memory));
    TRY(api->CreateTensorWithDataAsOrtValue(engine->memory, job->image,
                                            (size_t)job->channels * plane, shape, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &engine->image));
    TRY(api->CreateTensorWithDataAsOrtValue(engine->memory, job->logits,
                                            (size_t)job->classes * plane, answer, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &engine->logits));
    TRY(api->CreateIoBinding(engine->session, &engine->binding));
    TRY(api->GetAllocatorWithDefaultOptions(&allocator));
    TRY(api->SessionGetInputName(engine->session, 0, allocator, &input));
    OrtStatus *bound = api->BindInput(engine->binding, input, engine->image);
    api->ReleaseStatus(api->AllocatorFree(allocator, input));
    TRY(bound);
    TRY(api->SessionGetOutputName(engine->session, 0, allocator, &output));
    bound = api->BindOutput(engine->binding, output, engine->logits);
    api->ReleaseStatus(api->AllocatorFree(allocator, output));
    TRY(bound);
    return ES_OK;
}

static void close_engine(es_engine *engine) {
    const OrtApi *api = engine->api;
    api->ReleaseIoBinding(engine->binding);
    api->ReleaseValue(engine->image);
    api->ReleaseValue(engine->logits);
    api->ReleaseMemoryInfo(engine->memory);
    api->ReleaseSession(engine->session);
    api->ReleaseSessionOptions(engine->options);
    api->ReleaseEnv(engine->env);
    free(engine);
}

static int run(es_engine *engine, char *message) {
    return check(engine, engine->api->RunWithBinding(engine->session, NULL, engine->binding),
                 ES_ERR_ENGINE_RUN, message);
}

static int open_engine(const es_engine_job *job, es_engine **opened, char *message) {
    const es_blob *model = es_file_with_suffix(job, ".onnx", message);
    if (model == NULL) return ES_ERR_ENGINE_LOAD;
    const OrtApi *api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (api == NULL)
        return es_fail(message, ES_ERR_ENGINE_VERSION,
                       "onnxruntime %.20s is here; built for interface %d or newer",
                       OrtGetApiBase()->GetVersionString(), ORT_API_VERSION);
    size_t unused = 0;
    es_engine *engine = es_allocate(1, sizeof *engine, &unused);
    if (engine == NULL) return es_fail(message, ES_ERR_MEMORY, "no memory for the engine");
    memset(engine, 0, sizeof *engine);
    engine->api = api;
    int status = create_session(engine, model, job->threads, message);
    if (status == ES_OK) status = bind(engine, job, message);
    if (status == ES_OK) status = run(engine, message); /* its arenas are filled now, not later */
    if (status == ES_OK) *opened = engine;
    else close_engine(engine);
    return status;
}

static const char *version(const es_engine *engine) {
    (void)engine;
    return OrtGetApiBase()->GetVersionString();
}

const es_engine_kind es_engine_onnxruntime = {"onnxruntime", open_engine, run,
                                              close_engine,  version,     true};
