/* Counts allocations after es_open: edgeseg-allocations BUNDLE ENGINE [KEY]
 *
 * malloc and its relatives are replaced here, before the C library's, for everything in the
 * process; who called tells whose an allocation is. Prints
 *
 *     OPEN OURS ENGINE BYTES
 *
 * allocations while opening; after it those of this library and of the rest (the engine's), both
 * over CALLS calls and one self-test; and bytes of the rest. Returns 1 where OURS is not 0. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgeseg.h"
#include "own_code.h"

enum { SIDE = 200, CALLS = 20 };

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static unsigned long ours, others, bytes;
static int counting;

static void count(const void *caller, size_t size) {
    if (!__atomic_load_n(&counting, __ATOMIC_RELAXED)) return;
    if (is_own(caller)) {
        __atomic_fetch_add(&ours, 1, __ATOMIC_RELAXED);
    } else {
        __atomic_fetch_add(&others, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&bytes, size, __ATOMIC_RELAXED);
    }
}

void *malloc(size_t size) {
    count(__builtin_return_address(0), size);
    return __libc_malloc(size);
}

void *calloc(size_t number, size_t size) {
    count(__builtin_return_address(0), number * size);
    return __libc_calloc(number, size);
}

void *realloc(void *memory, size_t size) {
    count(__builtin_return_address(0), size);
    return __libc_realloc(memory, size);
}

void *memalign(size_t alignment, size_t size) {
    count(__builtin_return_address(0), size);
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    count(__builtin_return_address(0), size);
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    count(__builtin_return_address(0), size);
    void *found = __libc_memalign(alignment, size);
    if (found == NULL) return ENOMEM;
    *memory = found;
    return 0;
}

static int call(es_session *session) {
    static uint8_t frame[SIDE * SIDE * 3], mask[SIDE * SIDE];
    for (size_t i = 0; i < sizeof frame; i++) frame[i] = (uint8_t)(i * 7 / 5);
    for (int i = 0; i < CALLS; i++) { /* of sizes that change */
        int side = SIDE - i;
        if (es_infer(session, frame, side, side, SIDE, mask) != ES_OK) return 1;
        if (es_infer_rgb(session, frame, side, side, 3 * SIDE, mask) != ES_OK) return 1;
        if (es_infer(session, frame, 0, 1, 1, mask) != ES_ERR_ARGUMENT) return 1;
    }
    return es_selftest(session, NULL) != ES_OK && *es_last_message(session) == '\0';
}

int main(int number, char **arguments) {
    char message[ES_MESSAGE_BYTES];
    es_session *session = NULL;
    if (number < 3 || number > 4 || dl_iterate_phdr(find_own, NULL) != 1) return 2;
    es_options options = {.engine = arguments[2], .key = arguments[3], .threads = 1, .max_width = SIDE,
                          .max_height = SIDE, .largest_only = 1, .fill_holes = 1};
    counting = 1;
    int status = es_open(arguments[1], &options, &session, message);
    if (status == ES_ERR_ARGUMENT) { /* of several classes, which the options are not for */
        options.largest_only = options.fill_holes = 0;
        status = es_open(arguments[1], &options, &session, message);
    }
    counting = 0;
    if (status != ES_OK) {
        puts(message);
        return 1;
    }
    unsigned long opening = ours;
    ours = others = bytes = 0;
    counting = 1;
    int failed = call(session);
    counting = 0;
    printf("%lu %lu %lu %lu\n", opening, ours, others, bytes);
    es_close(session);
    return failed || opening == 0 || ours != 0;
}
