/* Where the bytes of a bundle lie: in a folder, or packed into one file. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define MAX_BLOB ((uint64_t)1 << 30) /* bytes of a file that is kept in memory */
enum { BLOCK = 16384 };

int es_changed(char *message, const char *name) {
    return es_fail(message, ES_ERR_BUNDLE_HASH,
                   "%.150s does not match SHA256SUMS; fetch or export the bundle again", name);
}

int es_no_memory(char *message, const char *name) {
    return es_fail(message, ES_ERR_MEMORY, "no memory for %.150s", name);
}

int es_bad_name(char *message, const char *name, size_t length) {
    char shown[101];
    size_t count = length < sizeof shown - 1 ? length : sizeof shown - 1;
    for (size_t i = 0; i < count; i++) shown[i] = name[i] >= 0x20 && name[i] < 0x7f ? name[i] : '?';
    shown[count] = '\0';
    return es_fail(message, ES_ERR_BUNDLE_NAME,
                   "a file is named '%s'; names are of letters, digits and '._-', relative, at most "
                   "%d long", shown, ES_MAX_PLAIN);
}

bool es_name_is_plain(const char *name, size_t length) {
    bool first = true; /* of a part */
    if (length > ES_MAX_PLAIN) return false;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '_';
        if (!word && (first || (c != '/' && c != '.' && c != '-'))) return false;
        first = c == '/';
    }
    return !first;
}

int es_store_open(const char *path, es_store *store, char *message) {
    struct stat info;
    memset(store, 0, sizeof *store);
    store->descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a pipe does not block */
    if (store->descriptor >= 0 && fstat(store->descriptor, &info) == 0) {
        if (S_ISDIR(info.st_mode)) {
            store->kind = &es_store_folder;
            return ES_OK;
        }
        if (S_ISREG(info.st_mode)) {
            store->kind = &es_store_archive;
            int status = es_archive_read(store, (uint64_t)info.st_size, path, message);
            if (status != ES_OK) es_store_close(store);
            return status;
        }
    }
    es_store_close(store);
    return es_fail(message, ES_ERR_BUNDLE_MISSING,
                   "%.150s is no folder and no file; make a bundle with `edgeseg export`", path);
}

void es_store_close(es_store *store) {
    if (store->descriptor >= 0) close(store->descriptor);
    store->descriptor = -1;
    free(store->members);
    store->members = NULL;
}

bool es_read_at(int descriptor, uint64_t position, uint8_t *bytes, size_t count) {
    while (count > 0) {
        ssize_t part = pread(descriptor, bytes, count, (off_t)position);
        if (part < 0 && errno == EINTR) continue;
        if (part <= 0) return false;
        bytes += part;
        position += (uint64_t)part;
        count -= (size_t)part;
    }
    return true;
}

/* Makes the steps of a CRC-32 (ISO 3309, as zip has it) of a byte each. */
static void make_steps(uint32_t steps[256]) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
        steps[byte] = crc;
    }
}

/* Adds bytes to a CRC-32; the first is 0. */
static uint32_t add_crc(const uint32_t steps[256], uint32_t crc, const uint8_t *bytes,
                        size_t count) {
    crc = ~crc;
    for (size_t i = 0; i < count; i++) crc = crc >> 8 ^ steps[(crc ^ bytes[i]) & 0xff];
    return ~crc;
}

/* What is read differs from what the store said of it. */
static int damaged(const es_file *file, const char *name, char *message) {
    if (!file->packed) return es_changed(message, name);
    return es_fail(message, ES_ERR_ARCHIVE_FORM,
                   "%.150s does not have its CRC-32; fetch the bundle or pack it again", name);
}

int es_file_read(const es_file *file, const char *name, es_blob *blob, size_t *total,
                 char digest[65], char *message) {
    uint8_t block[BLOCK];
    es_sha256 hash;
    uint32_t steps[256], crc = 0;
    if (file->packed) make_steps(steps);
    if (blob != NULL) {
        blob->bytes = file->size > MAX_BLOB ? NULL : es_allocate((size_t)file->size + 1, 1, total);
        if (blob->bytes == NULL) return es_no_memory(message, name);
        blob->count = (size_t)file->size;
        blob->bytes[blob->count] = 0;
    }
    es_sha256_begin(&hash);
    for (uint64_t at = 0; at < file->size; at += BLOCK) {
        uint8_t *bytes = blob != NULL ? blob->bytes + (size_t)at : block;
        size_t count = file->size - at < BLOCK ? (size_t)(file->size - at) : BLOCK;
        if (!es_read_at(file->descriptor, file->start + at, bytes, count))
            return damaged(file, name, message);
        es_sha256_add(&hash, bytes, count);
        if (file->packed) crc = add_crc(steps, crc, bytes, count);
    }
    es_sha256_end(&hash, digest);
    return file->packed && crc != file->crc ? damaged(file, name, message) : ES_OK;
}

void es_file_close(const es_file *file) {
    if (!file->packed) close(file->descriptor);
}
