/* An engine that needs no library: logits are the image, doubled; of several classes each is of a
 * channel in turn. Files: one that ends in .stub,
 * "refuse", "nan", "fail" or milliseconds that a call takes. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

struct es_engine {
    const float *image;
    float *logits;
    size_t count; /* pixels */
    int channels, classes;
    char what[16];
    long wait_ms;
};

static int open_engine(const es_engine_job *job, es_engine **opened, char *message) {
    const es_blob *model = es_file_with_suffix(job, ".stub", message);
    size_t unused = 0;
    if (model == NULL) return ES_ERR_ENGINE_LOAD;
    if (memcmp(model->bytes, "refuse", model->count < 6 ? model->count : 6) == 0 && model->count)
        return es_fail(message, ES_ERR_ENGINE_LOAD, "stub: refused the model");
    es_engine *engine = es_allocate(1, sizeof *engine, &unused);
    if (engine == NULL) return ES_ERR_MEMORY;
    memset(engine, 0, sizeof *engine);
    engine->image = job->image;
    engine->logits = job->logits;
    engine->count = (size_t)job->width * (size_t)job->height;
    engine->channels = job->channels;
    engine->classes = job->classes;
    memcpy(engine->what, model->bytes, model->count < 15 ? model->count : 15);
    engine->wait_ms = atol(engine->what);
    *opened = engine;
    return ES_OK;
}

static int run(es_engine *engine, char *message) {
    struct timespec wait = {engine->wait_ms / 1000, engine->wait_ms % 1000 * 1000000};
    if (strcmp(engine->what, "fail") == 0)
        return es_fail(message, ES_ERR_ENGINE_RUN, "stub: failed");
    if (engine->wait_ms > 0) nanosleep(&wait, NULL);
    for (int class = 0; class < engine->classes; class++) {
        const float *from = engine->image + (size_t)(class % engine->channels) * engine->count;
        float *to = engine->logits + (size_t)class * engine->count;
        for (size_t i = 0; i < engine->count; i++) to[i] = from[i] * 2;
    }
    if (strcmp(engine->what, "nan") == 0) engine->logits[engine->count / 2] = NAN;
    return ES_OK;
}

static void close_engine(es_engine *engine) { free(engine); }

static const char *version(const es_engine *engine) {
    (void)engine;
    return "0";
}

const es_engine_kind es_engine_stub = {"stub", open_engine, run, close_engine, version, true};
