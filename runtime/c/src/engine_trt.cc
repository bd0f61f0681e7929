// TensorRT 8.5 and newer, behind the same table. A model is the engine that `build_engine.py` of a
// kit wrote on this device (*.engine or *.plan) and its side-car (*.json), both in the bundle.
//
// Not yet run: it was compiled against NVIDIA's headers only, see docs/c-runtime.md.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include "internal.h"

namespace {

constexpr size_t max_nodes = 65536; // of the side-car

// Keeps TensorRT's last error for the message, and prints nothing.
class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char *text) noexcept override {
        if (severity <= Severity::kERROR) std::snprintf(last, sizeof last, "%s", text);
    }
    char last[200] = "no reason given";
};

} // namespace

struct es_engine {
    Logger logger;
    nvinfer1::IRuntime *runtime = nullptr;
    nvinfer1::ICudaEngine *plan = nullptr;
    nvinfer1::IExecutionContext *context = nullptr;
    cudaStream_t stream = nullptr;
    void *image = nullptr, *logits = nullptr; // on the device
    const float *host_image = nullptr;
    float *host_logits = nullptr;
    size_t image_bytes = 0, logits_bytes = 0;
    char version[32] = "";
};

namespace {

int check(cudaError_t error, int code, char *message) {
    if (error == cudaSuccess) return ES_OK;
    return es_fail(message, code, "cuda: %.200s", cudaGetErrorString(error));
}

void describe(int32_t version, char out[32]) {
    // 8.6.1 is 8601, from TensorRT 10 on 10.3.0 is 100300
    const int step = version >= 100000 ? 100 : 10;
    const int major = version >= 100000 ? version / 10000 : version / 1000;
    std::snprintf(out, 32, "%d.%d.%d", major, version / 100 % (step == 100 ? 100 : 10),
                  version % 100);
}

// Refuses an engine that another TensorRT built, as its side-car says; names both.
int check_version(const es_blob *sidecar, const char *here, char *message) {
    const char *text = reinterpret_cast<const char *>(sidecar->bytes);
    const size_t count = es_json_parse(text, sidecar->count, nullptr, 0);
    size_t unused = 0;
    if (count == 0 || count > max_nodes)
        return es_fail(message, ES_ERR_ENGINE_LOAD, "tensorrt: the engine's side-car is no JSON");
    auto *nodes = static_cast<es_json_node *>(es_allocate(count, sizeof(es_json_node), &unused));
    if (nodes == nullptr) return es_fail(message, ES_ERR_MEMORY, "no memory for the side-car");
    es_json_parse(text, sidecar->count, nodes, count);
    const es_json json = {text, nodes};
    char built[32];
    const bool read = es_json_string(&json, es_json_get(&json, 0, "tensorrt"), built, sizeof built);
    std::free(nodes);
    if (!read)
        return es_fail(message, ES_ERR_ENGINE_LOAD, "tensorrt: the side-car names no TensorRT");
    const size_t length = std::strlen(here); // a fourth number is of the build
    if (std::strncmp(built, here, length) == 0 && (built[length] == '\0' || built[length] == '.'))
        return ES_OK;
    return es_fail(message, ES_ERR_ENGINE_VERSION,
                   "the engine was built by TensorRT %s, here is %s; build it again on this device",
                   built, here);
}

// Binds the input and the output, float32 [1, channels or classes, height, width].
int bind(es_engine *engine, const es_engine_job *job, char *message) {
    if (engine->plan->getNbIOTensors() != 2)
        return es_fail(message, ES_ERR_ENGINE_LOAD, "tensorrt: the engine has %d tensors, not 2",
                       engine->plan->getNbIOTensors());
    for (int32_t i = 0; i < 2; i++) {
        const char *name = engine->plan->getIOTensorName(i);
        const bool input = engine->plan->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        const int32_t depth = input ? job->channels : job->classes;
        const nvinfer1::Dims shape = nvinfer1::Dims4(1, depth, job->height, job->width);
        if (engine->plan->getTensorDataType(name) != nvinfer1::DataType::kFLOAT)
            return es_fail(message, ES_ERR_ENGINE_LOAD, "tensorrt: %.60s is not float32", name);
        if ((input && !engine->context->setInputShape(name, shape)) ||
            !engine->context->setTensorAddress(name, input ? engine->image : engine->logits))
            return es_fail(message, ES_ERR_ENGINE_LOAD, "tensorrt: %s", engine->logger.last);
        const nvinfer1::Dims found = engine->context->getTensorShape(name);
        for (int32_t axis = 0; axis < 4; axis++)
            if (found.nbDims != 4 || found.d[axis] != shape.d[axis])
                return es_fail(message, ES_ERR_ENGINE_LOAD,
                               "tensorrt: %.60s is not of [1, %d, %d, %d]", name, depth,
                               job->height, job->width);
    }
    return ES_OK;
}

int run(es_engine *engine, char *message) {
    int status = check(cudaMemcpyAsync(engine->image, engine->host_image, engine->image_bytes,
                                       cudaMemcpyHostToDevice, engine->stream),
                       ES_ERR_ENGINE_RUN, message);
    if (status != ES_OK) return status;
    if (!engine->context->enqueueV3(engine->stream))
        return es_fail(message, ES_ERR_ENGINE_RUN, "tensorrt: %s", engine->logger.last);
    status = check(cudaMemcpyAsync(engine->host_logits, engine->logits, engine->logits_bytes,
                                   cudaMemcpyDeviceToHost, engine->stream),
                   ES_ERR_ENGINE_RUN, message);
    if (status != ES_OK) return status;
    return check(cudaStreamSynchronize(engine->stream), ES_ERR_ENGINE_RUN, message);
}

void close_engine(es_engine *engine) {
    delete engine->context;
    delete engine->plan;
    delete engine->runtime;
    cudaFree(engine->image);
    cudaFree(engine->logits);
    if (engine->stream != nullptr) cudaStreamDestroy(engine->stream);
    delete engine;
}

int load(es_engine *engine, const es_engine_job *job, const es_blob *plan, char *message) {
    int status = check(cudaStreamCreate(&engine->stream), ES_ERR_ENGINE_LOAD, message);
    if (status == ES_OK)
        status = check(cudaMalloc(&engine->image, engine->image_bytes), ES_ERR_MEMORY, message);
    if (status == ES_OK)
        status = check(cudaMalloc(&engine->logits, engine->logits_bytes), ES_ERR_MEMORY, message);
    if (status != ES_OK) return status;
    engine->runtime = nvinfer1::createInferRuntime(engine->logger);
    if (engine->runtime != nullptr)
        engine->plan = engine->runtime->deserializeCudaEngine(plan->bytes, plan->count);
    if (engine->plan != nullptr) engine->context = engine->plan->createExecutionContext();
    if (engine->context == nullptr)
        return es_fail(message, ES_ERR_ENGINE_LOAD, "tensorrt: %s", engine->logger.last);
    status = bind(engine, job, message);
    return status == ES_OK ? run(engine, message) : status;
}

int open_engine(const es_engine_job *job, es_engine **opened, char *message) {
    const es_blob *plan = es_file_with_suffix(job, ".engine", nullptr);
    if (plan == nullptr) plan = es_file_with_suffix(job, ".plan", message);
    const es_blob *sidecar = plan != nullptr ? es_file_with_suffix(job, ".json", message) : nullptr;
    if (sidecar == nullptr) return ES_ERR_ENGINE_LOAD;
    auto *engine = new (std::nothrow) es_engine;
    if (engine == nullptr) return es_fail(message, ES_ERR_MEMORY, "no memory for the engine");
    describe(getInferLibVersion(), engine->version);
    engine->host_image = job->image;
    engine->host_logits = job->logits;
    const size_t plane = sizeof(float) * static_cast<size_t>(job->height) *
                         static_cast<size_t>(job->width);
    engine->image_bytes = plane * static_cast<size_t>(job->channels);
    engine->logits_bytes = plane * static_cast<size_t>(job->classes);
    int status = check_version(sidecar, engine->version, message);
    if (status == ES_OK) status = load(engine, job, plan, message);
    if (status == ES_OK) *opened = engine;
    else close_engine(engine);
    return status;
}

const char *version(const es_engine *engine) { return engine->version; }

} // namespace

extern "C" const es_engine_kind es_engine_tensorrt = {"tensorrt", open_engine, run, close_engine,
                                                      version,    true};
