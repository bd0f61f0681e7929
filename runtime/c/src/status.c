/* Codes, messages and the one place that allocates. */
#define _POSIX_C_SOURCE 200809L
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

static const struct {
    int status;
    const char *code, *sentence;
} statuses[] = {
    {ES_OK, "OK", "done"},
    {ES_ERR_ARGUMENT, "E-ARGUMENT", "an argument is NULL or out of range"},
    {ES_ERR_FRAME, "E-FRAME", "the frame is not of a size that this session takes"},
    {ES_ERR_MEMORY, "E-MEMORY", "there is not enough memory"},
    {ES_ERR_BUSY, "E-SESSION-BUSY", "another thread is inside this session"},
    {ES_ERR_BUNDLE_MISSING, "E-BUNDLE-MISSING", "there is no bundle"},
    {ES_ERR_BUNDLE_HASH, "E-BUNDLE-HASH", "a file of the bundle does not match SHA256SUMS"},
    {ES_ERR_BUNDLE_LINK, "E-BUNDLE-LINK", "the bundle holds a link or a device"},
    {ES_ERR_MANIFEST_SIZE, "E-MANIFEST-SIZE", "manifest.json or SHA256SUMS is too large"},
    {ES_ERR_MANIFEST_NEWER, "E-MANIFEST-NEWER", "the bundle's schema is of another major version"},
    {ES_ERR_MANIFEST_FIELD, "E-MANIFEST-FIELD", "manifest.json is malformed"},
    {ES_ERR_PGM, "E-PGM", "a golden frame or mask is malformed"},
    {ES_ERR_BUNDLE_NAME, "E-BUNDLE-NAME", "the bundle has a file whose name is not plain"},
    {ES_ERR_ARCHIVE_FORM, "E-ARCHIVE-FORM", "the packed bundle is not in its one form"},
    {ES_ERR_ARCHIVE_SIZE, "E-ARCHIVE-SIZE", "the packed bundle is too large"},
    {ES_ERR_ENGINE_UNLISTED, "E-ENGINE-NOT-IN-BUNDLE", "the bundle has no model for the engine"},
    {ES_ERR_ENGINE_MISSING, "E-EXTRA-MISSING", "the engine is not compiled into this library"},
    {ES_ERR_ENGINE_LOAD, "E-ENGINE-LOAD", "the engine refused the model"},
    {ES_ERR_ENGINE_VERSION, "E-ENGINE-VERSION", "the engine library is of another version"},
    {ES_ERR_ENGINE_RUN, "E-ENGINE-RUN", "the engine failed while it ran"},
    {ES_ERR_ENGINE_RESULT, "E-ENGINE-RESULT", "the engine answered a number that is not finite"},
    {ES_ERR_CPU_FEATURE, "E-CPU-FEATURE", "the CPU does not have what the bundle needs"},
    {ES_ERR_SELFTEST, "E-SELFTEST", "the golden vectors were not answered as at export"},
    {ES_ERR_SIGNATURE_MISSING, "E-SIGNATURE-MISSING", "the bundle has no signature"},
    {ES_ERR_SIGNATURE, "E-SIGNATURE", "the signature does not hold for this key and bundle"},
    {ES_ERR_KEY_READ, "E-KEY-READ", "the key is no public key that signatures are verified with"},
    {ES_ERR_OPENSSL_MISSING, "E-EXTRA-MISSING", "this library was built without OpenSSL"},
};

const char *es_code(int status) {
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (statuses[i].status == status) return statuses[i].code;
    return "";
}

const char *es_strerror(int status) {
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (statuses[i].status == status) return statuses[i].sentence;
    return "no status of edgeseg";
}

int es_fail(char *message, int status, const char *format, ...) {
    if (message != NULL) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(message, ES_MESSAGE_BYTES, format, arguments);
        va_end(arguments);
        for (char *each = message; *each != '\0'; each++) /* one line, whatever a file is called */
            if ((unsigned char)*each < 0x20 || *each == 0x7f) *each = ' ';
    }
    return status;
}

void *es_allocate(size_t count, size_t size, size_t *total) {
    void *memory = NULL;
    if (size != 0 && count > (SIZE_MAX - 64) / size) return NULL;
    size_t bytes = count * size;
    if (posix_memalign(&memory, 64, bytes + (bytes == 0)) != 0) return NULL;
    *total += bytes;
    return memory;
}
