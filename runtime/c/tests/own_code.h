/* Where the code of this library lies in the process, for programs that replace malloc. Include it
 * with _GNU_SOURCE. */
#ifndef EDGESEG_OWN_CODE_H
#define EDGESEG_OWN_CODE_H

#include <link.h>
#include <stdint.h>

#include "edgeseg.h"

static uintptr_t own_begin, own_end;

static inline int is_own(const void *caller) {
    return (uintptr_t)caller >= own_begin && (uintptr_t)caller < own_end;
}

/* Finds the segment that holds es_infer; for dl_iterate_phdr, which then returns 1. */
static int find_own(struct dl_phdr_info *object, size_t size, void *unused) {
    uintptr_t wanted = (uintptr_t)es_infer;
    (void)size;
    (void)unused;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        uintptr_t begin = object->dlpi_addr + object->dlpi_phdr[i].p_vaddr;
        if (object->dlpi_phdr[i].p_type != PT_LOAD || wanted < begin ||
            wanted >= begin + object->dlpi_phdr[i].p_memsz)
            continue;
        own_begin = begin;
        own_end = begin + object->dlpi_phdr[i].p_memsz;
        return 1;
    }
    return 0;
}

#endif
