/* OpenVINO on the CPU, with the settings of edgeseg.runtime.engines.ov. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openvino/c/openvino.h>

#include "internal.h"

struct es_engine {
    ov_model_t *model;
    ov_compiled_model_t *compiled;
    ov_infer_request_t *request;
    ov_tensor_t *weights, *image, *logits;
    char version[64];
};

static int check(ov_status_e status, int code, char *message) {
    if (status == OK) return ES_OK;
    const char *reason = ov_get_last_err_msg(); /* its last line says most */
    char text[ES_MESSAGE_BYTES * 8] = "";
    if (reason != NULL) strncpy(text, reason, sizeof text - 1);
    ov_free(reason);
    size_t length = strlen(text);
    while (length > 0 && text[length - 1] == '\n') text[--length] = '\0';
    const char *line = strrchr(text, '\n');
    return es_fail(message, code, "openvino: %.200s",
                   line != NULL ? line + 1 : *text != '\0' ? text : ov_get_error_info(status));
}

#define TRY(call)                                               \
    do {                                                        \
        int tried = check((call), ES_ERR_ENGINE_LOAD, message); \
        if (tried != ES_OK) return tried;                       \
    } while (0)

/* A tensor over memory of ours. */
static int wrap(ov_element_type_e type, int64_t rank, const int64_t *sides, void *memory,
                ov_tensor_t **tensor, char *message) {
    ov_shape_t shape = {0, NULL};
    TRY(ov_shape_create(rank, sides, &shape));
    ov_status_e status = ov_tensor_create_from_host_ptr(type, shape, memory, tensor);
    ov_shape_free(&shape);
    TRY(status);
    return ES_OK;
}

/* The process's one core, never freed. A core's CPU plugin puts a stack of its own under the thread's
 * signal handlers, for CPUs with AMX, and brings back the one that it found when it goes; of two that
 * go in the order in which they came, the second brings back what the first has freed, and the next
 * signal with SA_ONSTACK is a crash (OpenVINO 2022.3 to 2026.4). */
static int core_of_process(ov_core_t **core, char *message) {
    static ov_core_t *shared; /* only through __atomic */
    *core = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
    if (*core != NULL) return ES_OK;
    ov_core_t *made = NULL;
    TRY(ov_core_create(&made));
    if (__atomic_compare_exchange_n(&shared, core, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        *core = made;
    else ov_core_free(made); /* another thread was quicker; this one has no plugin yet */
    return ES_OK;
}

static int compile(es_engine *engine, const es_engine_job *job, const es_blob *graph,
                   const es_blob *weights, const char *arithmetic, char *message) {
    const int64_t count = (int64_t)weights->count;
    const int64_t sides[4] = {1, job->channels, job->height, job->width};
    const int64_t answer[4] = {1, job->classes, job->height, job->width};
    char threads[16];
    snprintf(threads, sizeof threads, "%d", job->threads);
    int status = wrap(U8, 1, &count, weights->bytes, &engine->weights, message);
    if (status != ES_OK) return status;
    ov_core_t *core = NULL;
    status = core_of_process(&core, message);
    if (status != ES_OK) return status;
    TRY(ov_core_read_model_from_memory_buffer(core, (const char *)graph->bytes,
                                              graph->count, engine->weights, &engine->model));
    TRY(ov_core_compile_model(core, engine->model, "CPU", 8, &engine->compiled,
                              "PERFORMANCE_HINT", "LATENCY", "NUM_STREAMS", "1",
                              "INFERENCE_PRECISION_HINT", arithmetic, "INFERENCE_NUM_THREADS",
                              threads));
    TRY(ov_compiled_model_create_infer_request(engine->compiled, &engine->request));
    status = wrap(F32, 4, sides, job->image, &engine->image, message);
    if (status != ES_OK) return status;
    status = wrap(F32, 4, answer, job->logits, &engine->logits, message);
    if (status != ES_OK) return status;
    TRY(ov_infer_request_set_input_tensor(engine->request, engine->image));
    TRY(ov_infer_request_set_output_tensor(engine->request, engine->logits));
    return ES_OK;
}

static void close_engine(es_engine *engine) {
    ov_tensor_free(engine->image);
    ov_tensor_free(engine->logits);
    ov_infer_request_free(engine->request);
    ov_compiled_model_free(engine->compiled);
    ov_model_free(engine->model);
    ov_tensor_free(engine->weights);
    free(engine);
}

static int run(es_engine *engine, char *message) {
    return check(ov_infer_request_infer(engine->request), ES_ERR_ENGINE_RUN, message);
}

static void read_version(es_engine *engine) {
    ov_version_t found;
    if (ov_get_openvino_version(&found) != OK) return;
    strncpy(engine->version, found.buildNumber, sizeof engine->version - 1);
    ov_version_free(&found);
}

static int open_as(const char *arithmetic, const es_engine_job *job, es_engine **opened,
                   char *message) {
    const es_blob *graph = es_file_with_suffix(job, ".xml", message);
    const es_blob *weights = graph != NULL ? es_file_with_suffix(job, ".bin", message) : NULL;
    if (weights == NULL) return ES_ERR_ENGINE_LOAD;
    size_t unused = 0;
    es_engine *engine = es_allocate(1, sizeof *engine, &unused);
    if (engine == NULL) return es_fail(message, ES_ERR_MEMORY, "no memory for the engine");
    memset(engine, 0, sizeof *engine);
    read_version(engine);
    int status = compile(engine, job, graph, weights, arithmetic, message);
    if (status == ES_OK) status = run(engine, message); /* what it allocates late, it allocates now */
    if (status == ES_OK) *opened = engine;
    else close_engine(engine);
    return status;
}

static const char *version(const es_engine *engine) { return engine->version; }

static int open_f32(const es_engine_job *job, es_engine **opened, char *message) {
    return open_as("f32", job, opened, message);
}

/* Of a bundle that says so in `cpu`; asked again, as the engine would compute in another type. */
static int open_bf16(const es_engine_job *job, es_engine **opened, char *message) {
    static const es_manifest needed = {.needs = ES_CPU_BF16};
    int status = es_cpu_require(&needed, message);
    return status != ES_OK ? status : open_as("bf16", job, opened, message);
}

const es_engine_kind es_engine_openvino = {"openvino", open_f32, run, close_engine, version, false};
const es_engine_kind es_engine_openvino_bf16 = {"openvino-bf16", open_bf16, run, close_engine,
                                                version, false};
