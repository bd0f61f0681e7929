/* A model in ONNX Runtime's C API: load, run, copy. */
#include "plain_sample.h"

#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <string.h>

#define TRY(call)                                         \
    do {                                                  \
        OrtStatus *status = (call);                       \
        if (status != NULL) {                             \
            fputs(api->GetErrorMessage(status), stderr);  \
            return 1;                                     \
        }                                                 \
    } while (0)

int infer(const char *model, float *image, float *logits, int width, int height) {
    const OrtApi *api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    const char *inputs[] = {"image"}, *outputs[] = {"logits"};
    const int64_t shape[] = {1, 1, height, width};
    size_t bytes = (size_t)width * (size_t)height * sizeof(float);
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtMemoryInfo *memory;
    OrtValue *input, *output = NULL;
    float *answer;
    TRY(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "plain", &env));
    TRY(api->CreateSessionOptions(&options));
    TRY(api->SetIntraOpNumThreads(options, 1));
    TRY(api->CreateSession(env, model, options, &session));
    TRY(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    TRY(api->CreateTensorWithDataAsOrtValue(memory, image, bytes, shape, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
    TRY(api->Run(session, NULL, inputs, (const OrtValue *const *)&input, 1, outputs, 1, &output));
    TRY(api->GetTensorMutableData(output, (void **)&answer));
    memcpy(logits, answer, bytes);
    api->ReleaseValue(output);
    api->ReleaseValue(input);
    api->ReleaseMemoryInfo(memory);
    api->ReleaseSession(session);
    api->ReleaseSessionOptions(options);
    api->ReleaseEnv(env);
    return 0;
}
