/* The engines that are compiled in. To add one: a file engine_<x>.c and a line in the table. */
#include <string.h>

#include "internal.h"

static const es_engine_kind *const engines[] = {
#ifdef ES_WITH_OPENVINO
    &es_engine_openvino,
    &es_engine_openvino_bf16,
#endif
#ifdef ES_WITH_ONNXRUNTIME
    &es_engine_onnxruntime,
#endif
#ifdef ES_WITH_TENSORRT
    &es_engine_tensorrt,
#endif
#ifdef ES_WITH_STUB /* of the tests */
    &es_engine_stub,
#endif
    NULL};

const es_engine_kind *es_engine_find(const char *name) {
    for (size_t i = 0; engines[i] != NULL; i++)
        if (strcmp(engines[i]->name, name) == 0) return engines[i];
    return NULL;
}

const char *es_engine_name(int index) {
    for (int i = 0; index >= 0 && engines[i] != NULL; i++)
        if (i == index) return engines[i]->name;
    return NULL;
}

const es_blob *es_file_with_suffix(const es_engine_job *job, const char *suffix, char *message) {
    const es_blob *found = NULL;
    int count = 0;
    for (int i = 0; i < job->names->count; i++) {
        size_t length = strlen(job->names->name[i]), wanted = strlen(suffix);
        if (length < wanted || strcmp(job->names->name[i] + length - wanted, suffix) != 0) continue;
        found = &job->files[i];
        count++;
    }
    if (count == 1) return found;
    es_fail(message, ES_ERR_ENGINE_LOAD, "%d files of the model end in %s; expected one", count,
            suffix);
    return NULL;
}
