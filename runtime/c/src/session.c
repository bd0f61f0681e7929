/* The session: a verified bundle, an engine, and every buffer that a frame needs. */
#define _GNU_SOURCE /* sched_getaffinity */
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

struct es_session {
    char busy; /* only through __atomic */
    char message[ES_MESSAGE_BYTES];
    es_bundle bundle;
    const es_engine_kind *kind;
    es_engine *engine;
    es_canvas canvas;
    float *image, *logits; /* [1, channels or classes, height, width] of the network */
    uint8_t *grey;         /* a part of an RGB frame, or of a crop */
    uint8_t *keep;         /* of the crop, NULL without layout */
    uint8_t *golden;       /* the answer to a golden frame */
    es_run *runs;          /* NULL without options or a least lesion that need it */
    size_t logits_count;
    es_picture frames[ES_MAX_VECTORS], masks[ES_MAX_VECTORS];
    int threads, max_width, max_height;
    bool largest_only, fill_holes;
    size_t total; /* bytes allocated */
};

static int available_threads(void) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof cores, &cores) != 0) return 1;
    int count = CPU_COUNT(&cores);
    return count > 0 ? count : 1;
}

static int no_memory(char *message) {
    return es_fail(message, ES_ERR_MEMORY, "no memory for the session's buffers");
}

/* Takes the options over, or refuses one that is out of range. */
static int set_options(es_session *s, const es_options *options, char *message) {
    s->threads = options->threads > 0 ? options->threads : available_threads();
    s->largest_only = options->largest_only == 1;
    s->fill_holes = options->fill_holes == 1;
    if (options->threads < 0 || options->threads > 1024)
        return es_fail(message, ES_ERR_ARGUMENT, "threads %d is not in 0..1024", options->threads);
    if (options->max_width < 0 || options->max_height < 0 || options->max_width > ES_MAX_SIDE ||
        options->max_height > ES_MAX_SIDE)
        return es_fail(message, ES_ERR_ARGUMENT, "max_width %d or max_height %d is not in 0..%d",
                       options->max_width, options->max_height, ES_MAX_SIDE);
    if ((options->largest_only | options->fill_holes) & ~1)
        return es_fail(message, ES_ERR_ARGUMENT, "largest_only and fill_holes are 0 or 1");
    return ES_OK;
}

/* Reads the golden vectors; *max is widened to what they need. */
static int read_golden(es_session *s, es_picture *max, char *message) {
    const es_manifest *manifest = &s->bundle.manifest;
    for (int i = 0; i < manifest->frames.count; i++) {
        const es_blob *frame = &s->bundle.frames[i], *mask = &s->bundle.masks[i];
        if (!es_pgm_read(frame->bytes, frame->count, &s->frames[i]) ||
            !es_pgm_read(mask->bytes, mask->count, &s->masks[i]) ||
            s->masks[i].channels != 1 || s->frames[i].width != s->masks[i].width ||
            s->frames[i].height != s->masks[i].height)
            return es_fail(message, ES_ERR_PGM, "%.100s or its mask is no such PGM; export again",
                           manifest->frames.name[i]);
        if (s->frames[i].width > max->width) max->width = s->frames[i].width;
        if (s->frames[i].height > max->height) max->height = s->frames[i].height;
    }
    return ES_OK;
}

/* Sets the largest frame, and refuses one beyond reason. */
static int set_size(es_session *s, const es_options *options, char *message) {
    const es_layout *layout = &s->bundle.manifest.layout;
    s->max_width = layout->width > 0 ? layout->width : options->max_width;
    s->max_height = layout->width > 0 ? layout->height : options->max_height;
    if (s->max_width == 0) s->max_width = 1920;
    if (s->max_height == 0) s->max_height = 1200;
    if (s->max_width <= ES_MAX_PIXELS / s->max_height) return ES_OK;
    return es_fail(message, ES_ERR_ARGUMENT, "frames of %dx%d px are over %d in all; crop them",
                   s->max_width, s->max_height, ES_MAX_PIXELS);
}

static int allocate_buffers(es_session *s, const es_picture *golden) {
    const es_contract *contract = &s->bundle.manifest.contract;
    const es_layout *layout = &s->bundle.manifest.layout;
    int width = s->max_width > golden->width ? s->max_width : golden->width;
    int height = s->max_height > golden->height ? s->max_height : golden->height;
    size_t network = (size_t)contract->width * (size_t)contract->height;
    size_t frame = (size_t)s->max_width * (size_t)s->max_height;
    size_t replayed = (size_t)golden->width * (size_t)golden->height;
    size_t inputs = network * (size_t)contract->channels;
    s->logits_count = network * (size_t)contract->classes;
    s->image = es_allocate(inputs, sizeof *s->image, &s->total);
    s->logits = es_allocate(s->logits_count, sizeof *s->logits, &s->total);
    s->grey = es_allocate(frame > replayed ? frame : replayed, 1, &s->total);
    s->golden = es_allocate(replayed, 1, &s->total);
    if (s->image == NULL || s->logits == NULL || s->grey == NULL || s->golden == NULL ||
        !es_canvas_open(&s->canvas, contract->width, contract->height, contract->classes, width,
                        height, &s->total))
        return ES_ERR_MEMORY;
    memset(s->image, 0, inputs * sizeof *s->image);
    if (layout->width > 0) {
        s->keep = es_allocate(frame, 1, &s->total);
        if (s->keep == NULL) return ES_ERR_MEMORY;
        if (!es_layout_keep(layout, s->keep)) return ES_ERR_MANIFEST_FIELD;
    }
    size_t runs = 0, least = es_max_runs(contract->width, contract->height);
    if (s->largest_only || s->fill_holes) runs = es_max_runs(s->max_width, s->max_height);
    if (es_contract_drops(contract) && runs < least) runs = least;
    if (runs > 0) {
        s->runs = es_allocate(runs, sizeof *s->runs, &s->total);
        if (s->runs == NULL) return ES_ERR_MEMORY;
    }
    return ES_OK;
}

/* Frees model files that the engine has a copy of. */
static void drop_models(es_session *s) {
    if (!s->kind->copies_files) return;
    for (int i = 0; i < ES_MAX_MODEL_FILES; i++) {
        if (s->bundle.models[i].bytes != NULL) s->bundle.total -= s->bundle.models[i].count + 1;
        free(s->bundle.models[i].bytes);
        s->bundle.models[i].bytes = NULL;
    }
}

static int open_session(es_session *s, const char *bundle, const es_options *options,
                        char *message) {
    es_picture golden = {NULL, 1, 1, 1};
    int status = set_options(s, options, message);
    if (status != ES_OK) return status;
    const char *engine = options->engine != NULL && *options->engine == '\0' ? "none"
                                                                              : options->engine;
    status = es_bundle_open(bundle, options->key, engine, &s->bundle, message);
    if (status != ES_OK) return status;
    if (s->bundle.manifest.contract.classes > 1 && (s->largest_only || s->fill_holes))
        return es_fail(message, ES_ERR_ARGUMENT,
                       "largest_only and fill_holes are for networks of one class; this one has %d",
                       s->bundle.manifest.contract.classes);
    status = es_cpu_require(&s->bundle.manifest, message);
    if (status == ES_OK) status = set_size(s, options, message);
    if (status == ES_OK) status = read_golden(s, &golden, message);
    if (status != ES_OK) return status;
    status = allocate_buffers(s, &golden);
    if (status == ES_ERR_MEMORY) return no_memory(message);
    if (status != ES_OK) return es_fail(message, status, "layout keeps no pixel of its crop");
    const es_contract *contract = &s->bundle.manifest.contract;
    es_engine_job job = {&s->bundle.manifest.models, s->bundle.models,  s->image,
                         s->logits,                  contract->channels, contract->classes,
                         contract->width,            contract->height,   s->threads};
    s->kind = es_engine_find(s->bundle.manifest.engine);
    status = s->kind->open(&job, &s->engine, message);
    if (status == ES_OK) drop_models(s);
    return status;
}

int es_open(const char *bundle, const es_options *options, es_session **session, char *message) {
    static const es_options defaults;
    if (message != NULL) *message = '\0';
    if (bundle == NULL || session == NULL)
        return es_fail(message, ES_ERR_ARGUMENT, "bundle or session is NULL");
    size_t own = 0;
    es_session *opened = es_allocate(1, sizeof *opened, &own);
    if (opened == NULL) return no_memory(message);
    memset(opened, 0, sizeof *opened);
    opened->total = own;
    int status = open_session(opened, bundle, options != NULL ? options : &defaults, message);
    if (status == ES_OK) *session = opened;
    else es_close(opened);
    return status;
}

void es_close(es_session *session) {
    if (session == NULL) return;
    if (session->engine != NULL) session->kind->close(session->engine);
    es_bundle_close(&session->bundle);
    es_canvas_close(&session->canvas);
    free(session->image);
    free(session->logits);
    free(session->grey);
    free(session->keep);
    free(session->golden);
    free(session->runs);
    free(session);
}

/* A frame, or the crop of one. */
typedef struct view {
    const uint8_t *pixels;
    int width, height, channels; /* 1: grey, 3: interleaved RGB */
    size_t stride;               /* bytes */
    const uint8_t *keep;         /* of a crop: 1 where it is image; NULL: everywhere */
} view;

/* Sets to 0 what the layout does not keep. */
static void blank(const uint8_t *keep, int width, int height, uint8_t *pixels, size_t stride) {
    for (size_t y = 0; y < (size_t)height; y++)
        for (size_t x = 0; x < (size_t)width; x++)
            if (!keep[y * (size_t)width + x]) pixels[y * stride + x] = 0;
}

/* What a channel is of: the frame itself, or a part or crop of it in the session's buffer. */
static const uint8_t *plane_of(es_session *s, const view *from, int part, size_t *stride) {
    *stride = from->stride;
    if (from->channels == 1 && from->keep == NULL) return from->pixels;
    *stride = (size_t)from->width;
    if (from->channels == 1)
        for (int y = 0; y < from->height; y++)
            memcpy(s->grey + (size_t)y * *stride, from->pixels + (size_t)y * from->stride, *stride);
    else if (part == ES_LUMA)
        es_grey_from_rgb(from->pixels, from->width, from->height, from->stride, s->grey);
    else es_part_from_rgb(from->pixels, part, from->width, from->height, from->stride, s->grey);
    if (from->keep != NULL) blank(from->keep, from->width, from->height, s->grey, *stride);
    return s->grey;
}

/* Predicts a picture; the mask is written only when the engine's answer is good. */
static int predict(es_session *s, const view *from, uint8_t *mask, size_t mask_stride) {
    const es_contract *contract = &s->bundle.manifest.contract;
    es_box inset = es_inset_of(contract, from->width, from->height);
    for (int i = 0; i < contract->channels; i++) {
        /* Channels of a grey frame, and of luma, are all of the same picture. */
        if (i == 0 || (from->channels == 3 && contract->part[i] != ES_LUMA)) {
            size_t stride;
            const uint8_t *grey = plane_of(s, from, contract->part[i], &stride);
            es_resize_grey(&s->canvas, grey, from->width, from->height, stride, &inset);
        }
        es_normalise(&s->canvas, contract, &inset, i, s->image);
    }
    int status = s->kind->run(s->engine, s->message);
    if (status != ES_OK) return status;
    for (size_t i = 0; i < s->logits_count; i++) /* NaN would read as "no lesion" */
        if (!isfinite(s->logits[i]))
            return es_fail(s->message, ES_ERR_ENGINE_RESULT,
                           "%s answered a number that is not finite", s->kind->name);
    if (es_contract_drops(contract))
        es_drop_components(&s->canvas, contract, &inset, s->logits, s->runs);
    es_mask_from_logits(&s->canvas, contract, &inset, s->logits, from->width, from->height, mask,
                        mask_stride);
    return ES_OK;
}

/* Predicts the crop of a maker's frame. */
static int predict_layout(es_session *s, const view *frame, uint8_t *mask) {
    const es_layout *layout = &s->bundle.manifest.layout;
    const es_box *crop = &layout->crop;
    int width = crop->right - crop->left, height = crop->bottom - crop->top;
    size_t wide = (size_t)layout->width;
    size_t offset = (size_t)crop->top * wide + (size_t)crop->left;
    const uint8_t *first = frame->pixels + (size_t)crop->top * frame->stride +
                           (size_t)crop->left * (size_t)frame->channels;
    view from = {first, width, height, frame->channels, frame->stride, s->keep};
    int status = predict(s, &from, mask + offset, wide);
    if (status != ES_OK) return status;
    memset(mask, 0, offset); /* around the crop */
    for (int y = crop->top; y < crop->bottom; y++) {
        uint8_t *end = mask + (size_t)y * wide + crop->right;
        memset(end, 0, y + 1 < crop->bottom ? wide - (size_t)width
                                             : (size_t)(layout->height - y) * wide -
                                                   (size_t)crop->right);
    }
    blank(s->keep, width, height, mask + offset, wide);
    return ES_OK;
}

static int segment(es_session *s, const view *frame, uint8_t *mask) {
    const es_layout *layout = &s->bundle.manifest.layout;
    const es_box *crop = &layout->crop;
    int status = layout->width > 0 ? predict_layout(s, frame, mask)
                                   : predict(s, frame, mask, (size_t)frame->width);
    if (status != ES_OK) return status;
    if (s->fill_holes) {
        es_fill_holes(mask, frame->width, frame->height, s->runs);
        if (layout->width > 0) /* a blanked box inside a lesion is no hole of it */
            blank(s->keep, crop->right - crop->left, crop->bottom - crop->top,
                  mask + (size_t)crop->top * (size_t)frame->width + crop->left,
                  (size_t)frame->width);
    }
    if (s->largest_only) es_keep_largest(mask, frame->width, frame->height, s->runs);
    return ES_OK;
}

static bool enter(es_session *s) {
    return !__atomic_test_and_set(&s->busy, __ATOMIC_ACQUIRE);
}

static int leave(es_session *s, int status) {
    __atomic_clear(&s->busy, __ATOMIC_RELEASE);
    return status;
}

static int check_frame(es_session *s, int width, int height, int stride, int channels) {
    const es_layout *layout = &s->bundle.manifest.layout;
    if (width < 1 || height < 1 || width > ES_MAX_SIDE || height > ES_MAX_SIDE)
        return es_fail(s->message, ES_ERR_ARGUMENT, "frame of %dx%d px; expected 1..%d", width,
                       height, ES_MAX_SIDE);
    if (stride < width * channels)
        return es_fail(s->message, ES_ERR_ARGUMENT, "stride %d is smaller than a row of %d bytes",
                       stride, width * channels);
    if (layout->width > 0 && (width != layout->width || height != layout->height))
        return es_fail(s->message, ES_ERR_FRAME, "frame of %dx%d px; the layout is of %dx%d", width,
                       height, layout->width, layout->height);
    if (width > s->max_width || height > s->max_height)
        return es_fail(s->message, ES_ERR_FRAME, "frame of %dx%d px; opened for at most %dx%d",
                       width, height, s->max_width, s->max_height);
    return ES_OK;
}

static int infer(es_session *s, const uint8_t *frame, int width, int height, int stride,
                 uint8_t *mask, int channels) {
    if (s == NULL || frame == NULL || mask == NULL) return ES_ERR_ARGUMENT;
    if (!enter(s)) return ES_ERR_BUSY;
    int status = check_frame(s, width, height, stride, channels);
    if (status != ES_OK) return leave(s, status);
    view whole = {frame, width, height, channels, (size_t)stride, NULL};
    return leave(s, segment(s, &whole, mask));
}

int es_infer(es_session *session, const uint8_t *frame, int width, int height, int stride,
             uint8_t *mask) {
    return infer(session, frame, width, height, stride, mask, 1);
}

int es_infer_rgb(es_session *session, const uint8_t *frame, int width, int height, int stride,
                 uint8_t *mask) {
    return infer(session, frame, width, height, stride, mask, 3);
}

/* Compares an answer with a golden mask: 255 where lesion, of several classes their numbers. */
static double flipped_share(const uint8_t *mask, const es_picture *golden, int classes,
                            bool *equal) {
    size_t count = (size_t)golden->width * (size_t)golden->height, flipped = 0, lesion = 0;
    for (size_t i = 0; i < count; i++) {
        uint8_t expected = classes > 1 ? golden->pixels[i] : golden->pixels[i] != 0;
        lesion += expected != 0;
        flipped += expected != mask[i];
    }
    *equal = flipped == 0;
    return (double)flipped / (double)(lesion > 0 ? lesion : 1);
}

static int replay(es_session *s, es_selftest_result *result) {
    const es_manifest *manifest = &s->bundle.manifest;
    result->max_flipped = manifest->max_flipped;
    if (manifest->frames.count == 0)
        return es_fail(s->message, ES_ERR_SELFTEST,
                       "the bundle has no golden vectors of %s; export it again", s->kind->name);
    for (int i = 0; i < manifest->frames.count; i++) {
        const es_picture *frame = &s->frames[i];
        size_t row = (size_t)frame->width * (size_t)frame->channels;
        view from = {frame->pixels, frame->width, frame->height, frame->channels, row, NULL};
        bool equal;
        int status = predict(s, &from, s->golden, (size_t)frame->width);
        if (status != ES_OK) return status;
        double share = flipped_share(s->golden, &s->masks[i], manifest->contract.classes, &equal);
        result->frames++;
        result->bit_equal += equal;
        if (share > result->worst_flipped) {
            result->worst_flipped = share;
            result->worst_frame = i;
        }
    }
    if (result->worst_flipped <= result->max_flipped) return ES_OK;
    return es_fail(s->message, ES_ERR_SELFTEST,
                   "%.100s: %.2f %% of the lesion differs, over %.2f %%; do not use this bundle here",
                   manifest->frames.name[result->worst_frame], 100 * result->worst_flipped,
                   100 * result->max_flipped);
}

int es_selftest(es_session *session, es_selftest_result *result) {
    es_selftest_result found = {0, 0, 0, 0, 0};
    if (session == NULL) return ES_ERR_ARGUMENT;
    if (!enter(session)) return ES_ERR_BUSY;
    int status = replay(session, &found);
    if (result != NULL) *result = found;
    return leave(session, status);
}

int es_info(const es_session *session, es_facts *facts) {
    if (session == NULL || facts == NULL) return ES_ERR_ARGUMENT;
    const es_manifest *manifest = &session->bundle.manifest;
    facts->name = manifest->name;
    facts->target = manifest->target;
    facts->precision = manifest->precision;
    facts->engine = session->kind->name;
    facts->engine_version = session->kind->version(session->engine);
    facts->bundle_sha256 = session->bundle.sha256;
    facts->threads = session->threads;
    facts->network_width = manifest->contract.width;
    facts->network_height = manifest->contract.height;
    facts->max_width = session->max_width;
    facts->max_height = session->max_height;
    facts->channels = manifest->contract.channels;
    facts->takes_colour = manifest->contract.part[0] != ES_LUMA;
    facts->classes = manifest->contract.classes;
    for (int i = 0; i < ES_MAX_CLASSES; i++)
        facts->class_names[i] = i < facts->classes ? manifest->contract.of[i].name : NULL;
    facts->golden_frames = manifest->frames.count;
    facts->bytes = session->total + session->bundle.total;
    return ES_OK;
}

const char *es_last_message(const es_session *session) {
    return session != NULL ? session->message : "";
}
