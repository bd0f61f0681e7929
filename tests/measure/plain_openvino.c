/* A model in OpenVINO's C API: load, run, copy. */
#include "plain_sample.h"

#include <openvino/c/openvino.h>
#include <stdio.h>
#include <string.h>

#define TRY(call)                                 \
    do {                                          \
        if ((call) != OK) {                       \
            fputs(ov_get_last_err_msg(), stderr); \
            return 1;                             \
        }                                         \
    } while (0)

int infer(const char *model, float *image, float *logits, int width, int height) {
    const int64_t sides[] = {1, 1, height, width};
    ov_shape_t shape;
    ov_core_t *core;
    ov_model_t *graph;
    ov_compiled_model_t *compiled;
    ov_infer_request_t *request;
    ov_tensor_t *input, *output;
    void *answer;
    TRY(ov_core_create(&core));
    TRY(ov_core_read_model(core, model, NULL, &graph));
    TRY(ov_core_compile_model(core, graph, "CPU", 2, &compiled, "INFERENCE_NUM_THREADS", "1"));
    TRY(ov_compiled_model_create_infer_request(compiled, &request));
    TRY(ov_shape_create(4, sides, &shape));
    TRY(ov_tensor_create_from_host_ptr(F32, shape, image, &input));
    TRY(ov_infer_request_set_input_tensor(request, input));
    TRY(ov_infer_request_infer(request));
    TRY(ov_infer_request_get_output_tensor(request, &output));
    TRY(ov_tensor_data(output, &answer));
    memcpy(logits, answer, (size_t)width * (size_t)height * sizeof(float));
    ov_tensor_free(output);
    ov_tensor_free(input);
    ov_shape_free(&shape);
    ov_infer_request_free(request);
    ov_compiled_model_free(compiled);
    ov_model_free(graph);
    ov_core_free(core);
    return 0;
}
