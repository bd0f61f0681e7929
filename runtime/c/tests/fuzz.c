/* libFuzzer over all that reads a file: JSON and manifest, SHA256SUMS, PGM. The first byte chooses. */
#include <stdlib.h>
#include <string.h>

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    char *text = malloc(size > 1 ? size - 1 : 1); /* exactly as large, so that a byte too far is seen */
    if (text == NULL) abort();
    memcpy(text, data + 1, size - 1);
    es_sum sums[8];
    es_picture picture;
    if (*data % 3 == 0) read_manifest(text, size - 1);
    if (*data % 3 == 1) es_sums_parse(text, size - 1, sums, 8);
    if (*data % 3 == 2) es_pgm_read((const uint8_t *)text, size - 1, &picture);
    free(text);
    return 0;
}
