/* libFuzzer over all that reads a file: JSON and manifest, SHA256SUMS, PGM, a packed bundle,
 * model.sig and what it signs. The first byte chooses. */
#define _GNU_SOURCE /* memfd_create */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_manifest(const char *text, size_t size) {
    size_t count = es_json_parse(text, size, NULL, 0);
    if (count == 0) return;
    es_json_node *nodes = malloc(count * sizeof *nodes);
    es_manifest *manifest = malloc(sizeof *manifest);
    if (nodes == NULL || manifest == NULL) abort();
    if (es_json_parse(text, size, nodes, count) != count) abort();
    es_json json = {text, nodes};
    char message[ES_MESSAGE_BYTES];
    es_manifest_read(&json, "", manifest, message);
    if (es_manifest_read(&json, "stub", manifest, message) == ES_OK && manifest->layout.width > 0 &&
        manifest->layout.width <= 64 && manifest->layout.height <= 64) {
        static uint8_t keep[64 * 64];
        es_layout_keep(&manifest->layout, keep);
    }
    free(manifest);
    free(nodes);
}

static void open_packed(const char *bytes, size_t size) {
    char path[32];
    int file = memfd_create("edgeseg-fuzz", 0);
    if (file < 0 || write(file, bytes, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    es_verify(path, "/nonexistent", NULL);
    es_verify(path, NULL, NULL);
    close(file);
}

static void read_signature(char *text, size_t size) {
    char message[ES_MESSAGE_BYTES], sums[65];
    es_signature signature;
    memset(sums, '0', 64);
    sums[64] = '\0';
    if (es_signature_read(text, size, &signature))
        es_statement_check((const char *)signature.payload, signature.payload_count, sums, message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    char *text = malloc(size > 1 ? size - 1 : 1); /* exactly as large, so that a byte too far is seen */
    if (text == NULL) abort();
    memcpy(text, data + 1, size - 1);
    es_sum sums[8];
    es_picture picture;
    switch (*data % 5) {
        case 0: read_manifest(text, size - 1); break;
        case 1: es_sums_parse(text, size - 1, sums, 8); break;
        case 2: es_pgm_read((const uint8_t *)text, size - 1, &picture); break;
        case 3: open_packed(text, size - 1); break;
        default: read_signature(text, size - 1);
    }
    free(text);
    return 0;
}
