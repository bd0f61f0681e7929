/* A bundle as one file: the canonical form of edgeseg.runtime.store, and nothing but it.
 *
 * No header is interpreted: the one that belongs to a file's name, size and CRC-32 is made here and
 * compared, so that two readers of zip archives cannot understand it in two ways. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { /* bytes of PKWARE's APPNOTE 6.3: local header, header in the directory, end of it */
    LOCAL = 30,
    CENTRAL = 46,
    END = 22
};
#define MAX_ARCHIVE ((uint64_t)1 << 30)
#define MAX_FILES 4096
#define MAX_DIRECTORY (MAX_FILES * (CENTRAL + ES_MAX_PLAIN))
#define VERSION 10u              /* 1.0 */
#define UNIX (3u << 8)           /* that made it */
#define DATE (1u << 5 | 1u)      /* 1 January 1980 */
#define PLAIN_FILE (0100644u << 16)

typedef struct reading {
    es_store *store;
    const char *path;
    char *message;
    uint32_t count, size, start; /* files; bytes of the directory, and where it begins */
} reading;

static int bad_form(const reading *r, const char *why) {
    return es_fail(r->message, ES_ERR_ARCHIVE_FORM,
                   "%.80s is no bundle as `edgeseg bundle pack` writes it: %s; fetch it or pack it "
                   "again", r->path, why);
}

static uint32_t get(const uint8_t *bytes, int count) {
    uint32_t value = 0;
    for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

static uint8_t *put(uint8_t *to, uint32_t value, int count) {
    for (int i = 0; i < count; i++, value >>= 8) *to++ = (uint8_t)(value & 0xff);
    return to;
}

static uint8_t *put_zeros(uint8_t *to, size_t count) {
    memset(to, 0, count);
    return to + count;
}

/* Both headers have this in the middle: date to the length of the name. */
static uint8_t *put_facts(uint8_t *to, const es_member *member, size_t length) {
    to = put(to, DATE, 2);
    to = put(to, member->crc, 4);
    to = put(to, member->size, 4); /* stored as it is */
    to = put(to, member->size, 4);
    return put(to, (uint32_t)length, 2);
}

/* Writes the header in front of a file's content and returns its length. */
static size_t local_header(const es_member *member, uint8_t out[LOCAL + ES_MAX_PLAIN]) {
    size_t length = strlen(member->name);
    uint8_t *to = put(out, 0x04034b50, 4);
    to = put(to, VERSION, 2);
    to = put_zeros(to, 6); /* flags, method, time */
    to = put_facts(to, member, length);
    to = put_zeros(to, 2); /* extra fields */
    memcpy(to, member->name, length);
    return LOCAL + length;
}

/* Writes a file's header in the directory and returns its length. */
static size_t central_header(const es_member *member, uint8_t out[CENTRAL + ES_MAX_PLAIN]) {
    size_t length = strlen(member->name);
    uint8_t *to = put(out, 0x02014b50, 4);
    to = put(to, UNIX | VERSION, 2);
    to = put(to, VERSION, 2);
    to = put_zeros(to, 6);
    to = put_facts(to, member, length);
    to = put_zeros(to, 8); /* extra fields, comment, disk, attributes of no meaning */
    to = put(to, PLAIN_FILE, 4);
    to = put(to, member->start - LOCAL - (uint32_t)length, 4);
    memcpy(to, member->name, length);
    return CENTRAL + length;
}

/* Reads the end of the directory, the last bytes of an archive. */
static int read_end(reading *r, uint64_t size) {
    uint8_t end[END], expected[END];
    if (size > MAX_ARCHIVE)
        return es_fail(r->message, ES_ERR_ARCHIVE_SIZE,
                       "%.100s is over %lu bytes, which a packed bundle may have; take it as a folder",
                       r->path, (unsigned long)MAX_ARCHIVE);
    if (size < END || !es_read_at(r->store->descriptor, size - END, end, END))
        return bad_form(r, "it is too short");
    r->count = get(end + 8, 2);
    r->size = get(end + 12, 4);
    r->start = get(end + 16, 4);
    if (r->count > MAX_FILES || r->size > MAX_DIRECTORY ||
        (uint64_t)r->start + r->size + END != size)
        return bad_form(r, "its directory is not where it should end");
    uint8_t *to = put(expected, 0x06054b50, 4);
    to = put_zeros(to, 4); /* disks */
    to = put(to, r->count, 2);
    to = put(to, r->count, 2);
    to = put(to, r->size, 4);
    to = put(to, r->start, 4);
    put_zeros(to, 2); /* comment */
    return memcmp(end, expected, END) == 0 ? ES_OK : bad_form(r, "its end is another");
}

/* Reads one header of the directory, of which `left` bytes are there; *used: its length. */
static int read_header(const reading *r, const uint8_t *header, size_t left, es_member *member,
                       size_t *used) {
    uint8_t expected[CENTRAL + ES_MAX_PLAIN];
    size_t length = left < CENTRAL ? 0 : get(header + 28, 2);
    if (left < CENTRAL + length) return bad_form(r, "its directory is cut");
    const char *name = (const char *)header + CENTRAL;
    if (!es_name_is_plain(name, length)) return es_bad_name(r->message, name, length);
    memcpy(member->name, name, length);
    member->name[length] = '\0';
    member->crc = get(header + 16, 4);
    member->size = get(header + 20, 4);
    member->start = get(header + 42, 4) + LOCAL + (uint32_t)length; /* compared when all are read */
    *used = central_header(member, expected);
    if (memcmp(header, expected, *used) != 0)
        return bad_form(r, "its directory has a file in another form");
    return ES_OK;
}

static int read_directory(reading *r, const uint8_t *directory) {
    es_store *store = r->store;
    size_t at = 0, used = 0;
    for (; at < r->size; at += used, store->count++) {
        es_member *member = &store->members[store->count];
        if ((uint32_t)store->count == r->count) return bad_form(r, "it has more files than it says");
        int status = read_header(r, directory + at, r->size - at, member, &used);
        if (status != ES_OK) return status;
        if (store->count > 0 && strcmp(member[-1].name, member->name) >= 0)
            return bad_form(r, "names are not sorted or not once each");
    }
    return (uint32_t)store->count == r->count ? ES_OK : bad_form(r, "it has fewer files than it says");
}

static int by_name(const void *name, const void *member) {
    return strcmp(name, ((const es_member *)member)->name);
}

static const es_member *find_member(const es_store *store, const char *name) {
    return bsearch(name, store->members, (size_t)store->count, sizeof *store->members, by_name);
}

/* Whether a folder that a file lies in has the name of another file. */
static bool lies_in_a_file(const es_store *store, const es_member *member) {
    char folder[ES_MAX_PLAIN + 1];
    for (size_t i = 0; member->name[i] != '\0'; i++) {
        folder[i] = '\0';
        if (member->name[i] == '/' && find_member(store, folder) != NULL) return true;
        folder[i] = member->name[i];
    }
    return false;
}

/* Compares the headers in front of the files, which lie one behind the other up to the directory. */
static int check_members(const reading *r) {
    const es_store *store = r->store;
    uint64_t position = 0;
    for (int i = 0; i < store->count; i++) {
        const es_member *member = &store->members[i];
        uint8_t expected[LOCAL + ES_MAX_PLAIN], header[LOCAL + ES_MAX_PLAIN];
        size_t length = local_header(member, expected);
        if (lies_in_a_file(store, member)) return bad_form(r, "a file has the name of a folder");
        if (member->start != position + length ||
            (uint64_t)member->start + member->size > r->start)
            return bad_form(r, "a file is not where the one before it ends");
        if (!es_read_at(store->descriptor, position, header, length) ||
            memcmp(header, expected, length) != 0)
            return bad_form(r, "a file has another header than the directory says");
        position = (uint64_t)member->start + member->size;
    }
    return position == r->start ? ES_OK : bad_form(r, "it has bytes that belong to no file");
}

int es_archive_read(es_store *store, uint64_t size, const char *path, char *message) {
    reading r = {.store = store, .path = path, .message = message};
    size_t unused = 0;
    int status = read_end(&r, size);
    if (status != ES_OK) return status;
    uint8_t *directory = es_allocate(r.size, 1, &unused);
    store->members = es_allocate(r.count, sizeof *store->members, &unused);
    if (directory == NULL || store->members == NULL)
        status = es_no_memory(message, "the directory of a packed bundle");
    else if (!es_read_at(store->descriptor, r.start, directory, r.size))
        status = bad_form(&r, "its directory cannot be read");
    else
        status = read_directory(&r, directory);
    free(directory);
    return status == ES_OK ? check_members(&r) : status;
}

static es_file file_of(const es_store *store, const es_member *member) {
    es_file file = {store->descriptor, member->start, member->size, true, member->crc};
    return file;
}

static int find(const es_store *store, const char *name, es_file *file, char *message) {
    const es_member *member = find_member(store, name);
    if (member == NULL)
        return es_fail(message, ES_ERR_BUNDLE_MISSING,
                       "there is no %.150s; make a bundle with `edgeseg export`", name);
    *file = file_of(store, member);
    return ES_OK;
}

static int walk(const es_store *store, es_visit *visit, void *context, char *message) {
    (void)message;
    int status = ES_OK;
    for (int i = 0; status == ES_OK && i < store->count; i++) {
        es_file file = file_of(store, &store->members[i]);
        status = visit(context, store->members[i].name, &file);
    }
    return status;
}

const es_store_kind es_store_archive = {find, walk};
