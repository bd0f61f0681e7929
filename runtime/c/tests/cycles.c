/* Opens, uses and closes a bundle again and again: edgeseg-cycles BUNDLE ENGINE COUNT
 *
 * malloc and its relatives are replaced as in allocations.c, and blocks that this library asked for
 * are remembered until someone frees them. Prints after each cycle
 *
 *     OURS FILES HEAP RESIDENT
 *
 * blocks of this library that are left, open files, KiB in use on the process's heap, and KiB of
 * the process in memory, the engine's included. Returns 1 where OURS is ever not 0. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "edgeseg.h"
#include "own_code.h"

enum { SIDE = 200, MOST = 4096 };

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void *blocks[MOST]; /* of ours, not yet freed; NULL is a free place */
static int highest;         /* place ever used, and one more */
static unsigned long seen;  /* blocks of ours, ever */

static void *remember(const void *caller, void *block) {
    if (block == NULL || !is_own(caller)) return block;
    for (int i = 0; i < MOST; i++) {
        void *empty = NULL;
        if (!__atomic_compare_exchange_n(&blocks[i], &empty, block, 0, __ATOMIC_SEQ_CST,
                                         __ATOMIC_SEQ_CST))
            continue;
        if (i >= highest) highest = i + 1; /* es_open and es_close run on one thread here */
        seen++;
        return block;
    }
    abort();
}

void *malloc(size_t size) { return remember(__builtin_return_address(0), __libc_malloc(size)); }

void *calloc(size_t number, size_t size) {
    return remember(__builtin_return_address(0), __libc_calloc(number, size));
}

int posix_memalign(void **block, size_t alignment, size_t size) {
    void *found = __libc_memalign(alignment, size);
    if (found == NULL) return ENOMEM;
    *block = remember(__builtin_return_address(0), found);
    return 0;
}

void free(void *block) {
    for (int i = 0; i < highest && block != NULL; i++) {
        void *wanted = block;
        if (__atomic_load_n(&blocks[i], __ATOMIC_RELAXED) == block &&
            __atomic_compare_exchange_n(&blocks[i], &wanted, NULL, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
            break;
    }
    __libc_free(block);
}

static int left(void) {
    int count = 0;
    for (int i = 0; i < highest; i++) count += blocks[i] != NULL;
    return count;
}

static int open_files(void) {
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (folder == NULL) return -1;
    while (readdir(folder) != NULL) count++;
    closedir(folder);
    return count - 3; /* ".", ".." and the folder itself */
}

static unsigned long resident_kib(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL) return 0;
    if (fscanf(file, "%*u %lu", &pages) != 1) pages = 0;
    fclose(file);
    return pages * (unsigned long)sysconf(_SC_PAGESIZE) / 1024;
}

/* In use on the heap. mallinfo2 came with glibc 2.33; before, the fields wrap at 4 GiB. */
static size_t heap_kib(void) {
#if __GLIBC_PREREQ(2, 33)
    struct mallinfo2 heap = mallinfo2();
    return (heap.uordblks + heap.hblkhd) / 1024;
#else
    struct mallinfo heap = mallinfo();
    return ((size_t)(unsigned)heap.uordblks + (size_t)(unsigned)heap.hblkhd) / 1024;
#endif
}

static int cycle(const char *bundle, const es_options *options) {
    static uint8_t frame[SIDE * SIDE], mask[SIDE * SIDE];
    char message[ES_MESSAGE_BYTES];
    es_session *session = NULL;
    int status = es_open(bundle, options, &session, message);
    if (status == ES_OK) status = es_infer(session, frame, SIDE, SIDE, SIDE, mask);
    else fprintf(stderr, "%s\n", message);
    es_close(session);
    return status != ES_OK;
}

int main(int number, char **arguments) {
    if (number != 4 || dl_iterate_phdr(find_own, NULL) != 1) return 2;
    es_options options = {.engine = arguments[2], .threads = 1, .max_width = SIDE,
                          .max_height = SIDE};
    for (int i = atoi(arguments[3]); i > 0; i--) {
        if (cycle(arguments[1], &options) != 0) return 2;
        printf("%d %d %zu %lu\n", left(), open_files(), heap_kib(), resident_kib());
        if (left() != 0) return 1;
    }
    return seen == 0; /* counted nothing: the counting is wrong */
}
