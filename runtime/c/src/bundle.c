/* The bundle's folder: walked once, each file hashed as it is read, none followed as a link. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define MAX_DEPTH 8                          /* of folders in a bundle */
#define MAX_FILE ((off_t)1 << 30)            /* bytes of a file that is kept in memory */
#define MAX_SUMS (ES_MAX_MANIFEST / 68)      /* lines: 64 digits, 2 blanks, a letter, a line end */
static const char manifest_name[] = "manifest.json", sums_name[] = "SHA256SUMS";
static const char signature_name[] = "model.sig"; /* in no list, since it signs the list */

typedef struct walk {
    es_bundle *bundle;
    es_sum *sums;
    int count;
    char *message;
    char path[ES_MAX_NAME]; /* of what is looked at, from the bundle's folder */
} walk;

static int changed(char *message, const char *name) {
    return es_fail(message, ES_ERR_BUNDLE_HASH,
                   "%.150s does not match SHA256SUMS; fetch or export the bundle again", name);
}

static int no_memory(char *message, const char *name) {
    return es_fail(message, ES_ERR_MEMORY, "no memory for %.150s", name);
}

static bool is_sum_line(const char *line, size_t length) {
    if (length < 67 || line[64] != ' ' || line[65] != ' ' || length - 66 >= ES_MAX_NAME) return false;
    return strspn(line, "0123456789abcdef") == 64 && strlen(line) == length;
}

/* Whether a path stays in its folder: no empty part, none of only dots, not absolute. */
static bool is_inside(const char *name) {
    for (;;) {
        size_t part = strcspn(name, "/");
        if (part == 0 || (part == 1 && name[0] == '.') || (part == 2 && !strncmp(name, "..", 2)))
            return false;
        if (name[part] == '\0') return true;
        name += part + 1;
    }
}

int es_sums_parse(char *text, size_t length, es_sum *sums, size_t capacity) {
    int count = 0;
    const char *before = "";
    for (size_t at = 0; at < length;) {
        char *line = text + at, *end = memchr(line, '\n', length - at);
        if (end == NULL) return -1;
        *end = '\0';
        if (!is_sum_line(line, (size_t)(end - line)) || !is_inside(line + 66) ||
            strcmp(before, line + 66) >= 0)
            return -1;
        before = line + 66;
        if ((size_t)count < capacity) {
            memcpy(sums[count].digest, line, 64);
            sums[count].digest[64] = '\0';
            sums[count].name = before;
            sums[count].seen = false;
        }
        count++;
        at = (size_t)(end - text) + 1;
    }
    return count;
}

static int by_name(const void *name, const void *sum) {
    return strcmp(name, ((const es_sum *)sum)->name);
}

static es_sum *find_sum(const walk *w, const char *name) {
    return bsearch(name, w->sums, (size_t)w->count, sizeof *w->sums, by_name);
}

/* Opens a plain file that is no link. *status tells what else it is. */
static int open_plain(int folder, const char *name, off_t *size, int *status) {
    struct stat info;
    int file = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    *status = errno == ELOOP ? ES_ERR_BUNDLE_LINK : ES_ERR_BUNDLE_HASH;
    if (file < 0) return -1;
    if (fstat(file, &info) == 0 && S_ISREG(info.st_mode)) {
        *size = info.st_size;
        return file;
    }
    *status = ES_ERR_BUNDLE_LINK;
    close(file);
    return -1;
}

/* Reads up to count bytes; fewer only at the end of the file. Returns -1 on an error. */
static ssize_t read_all(int file, uint8_t *bytes, size_t count) {
    size_t used = 0;
    while (used < count) {
        ssize_t part = read(file, bytes + used, count - used);
        if (part < 0 && errno == EINTR) continue;
        if (part < 0) return -1;
        if (part == 0) break;
        used += (size_t)part;
    }
    return (ssize_t)used;
}

/* Reads an open file of a known size whole; it must end there. */
static int read_blob(int file, off_t size, es_blob *blob, size_t *total, es_sha256 *hash) {
    blob->bytes = size > MAX_FILE ? NULL : es_allocate((size_t)size + 1, 1, total);
    if (blob->bytes == NULL) return ES_ERR_MEMORY;
    blob->count = (size_t)size;
    if (read_all(file, blob->bytes, blob->count + 1) != (ssize_t)size) return ES_ERR_BUNDLE_HASH;
    blob->bytes[blob->count] = 0;
    es_sha256_add(hash, blob->bytes, blob->count);
    return ES_OK;
}

/* Hashes an open file that nobody needs afterwards. */
static int read_through(int file, es_sha256 *hash) {
    uint8_t block[16384];
    ssize_t part;
    while ((part = read_all(file, block, sizeof block)) > 0)
        es_sha256_add(hash, block, (size_t)part);
    return part == 0 ? ES_OK : ES_ERR_BUNDLE_HASH;
}

/* Where the content of a file is to be kept; NULL if it is only hashed. */
static es_blob *place_of(es_bundle *bundle, const char *name) {
    const struct { const es_names *names; es_blob *blobs; } kept[] = {
        {&bundle->manifest.models, bundle->models},
        {&bundle->manifest.frames, bundle->frames},
        {&bundle->manifest.masks, bundle->masks}};
    for (size_t kind = 0; kind < 3; kind++)
        for (int i = 0; i < kept[kind].names->count; i++)
            if (strcmp(kept[kind].names->name[i], name) == 0) return &kept[kind].blobs[i];
    return NULL;
}

static int check_file(walk *w, int folder, const char *name) {
    off_t size = 0;
    int status;
    if (strcmp(w->path, sums_name) == 0) return ES_OK; /* read already, from the same folder */
    int file = open_plain(folder, name, &size, &status);
    if (file < 0 && status == ES_ERR_BUNDLE_LINK)
        return es_fail(w->message, status, "%.150s is a link or no plain file", w->path);
    if (file < 0) return changed(w->message, w->path);
    if (strcmp(w->path, signature_name) == 0) {
        close(file);
        return ES_OK;
    }
    es_sum *sum = find_sum(w, w->path);
    if (sum == NULL) {
        close(file);
        return changed(w->message, w->path);
    }
    es_sha256 hash;
    char digest[65];
    es_sha256_begin(&hash);
    es_blob *place = place_of(w->bundle, w->path);
    if (place != NULL && place->bytes != NULL) place = NULL; /* a file system that shows it twice */
    status = place != NULL ? read_blob(file, size, place, &w->bundle->total, &hash)
                           : read_through(file, &hash);
    close(file);
    if (status == ES_ERR_MEMORY) return no_memory(w->message, w->path);
    es_sha256_end(&hash, digest);
    if (status != ES_OK || strcmp(digest, sum->digest) != 0 || sum->seen)
        return changed(w->message, w->path);
    sum->seen = true;
    return ES_OK;
}

/* Checks every entry of a folder, which is taken over and closed. */
static int check_folder(walk *w, int folder, size_t used, int depth) {
    DIR *entries = fdopendir(folder);
    if (entries == NULL) {
        close(folder);
        return no_memory(w->message, "a folder");
    }
    int status = ES_OK;
    struct dirent *entry;
    while (status == ES_OK && (errno = 0, entry = readdir(entries)) != NULL) {
        const char *name = entry->d_name;
        struct stat info;
        size_t length = strlen(name);
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        if (used + length + 2 > sizeof w->path) {
            status = changed(w->message, name);
            break;
        }
        memcpy(w->path + used, name, length + 1);
        if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
            status = changed(w->message, w->path);
        } else if (S_ISDIR(info.st_mode)) {
            int below = depth == MAX_DEPTH
                            ? -1
                            : openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            memcpy(w->path + used + length, "/", 2);
            status = below < 0 ? changed(w->message, w->path)
                               : check_folder(w, below, used + length + 1, depth + 1);
        } else {
            status = check_file(w, folder, name);
        }
    }
    if (status == ES_OK && errno != 0) status = changed(w->message, "the folder");
    closedir(entries);
    return status;
}

/* Reads manifest.json or SHA256SUMS and its hash. */
static int read_small(int folder, const char *name, es_blob *blob, size_t *total, char digest[65],
                      char *message) {
    off_t size = 0;
    int status;
    es_sha256 hash;
    int file = open_plain(folder, name, &size, &status);
    if (file < 0 && status == ES_ERR_BUNDLE_LINK)
        return es_fail(message, status, "%s is a link or no plain file", name);
    if (file < 0)
        return es_fail(message, ES_ERR_BUNDLE_MISSING,
                       "there is no %s; make a bundle with `edgeseg export`", name);
    if (size > (off_t)ES_MAX_MANIFEST) {
        close(file);
        return es_fail(message, ES_ERR_MANIFEST_SIZE, "%s is over %u bytes", name, ES_MAX_MANIFEST);
    }
    es_sha256_begin(&hash);
    status = read_blob(file, size, blob, total, &hash);
    close(file);
    es_sha256_end(&hash, digest);
    if (status == ES_ERR_MEMORY) return no_memory(message, name);
    return status == ES_OK ? ES_OK : changed(message, name);
}

/* Whether the manifest's `files` are the lines of SHA256SUMS without the manifest's own. */
static bool lists_the_same(const es_json *json, const walk *w) {
    uint32_t files = es_json_get(json, 0, "files");
    if (files == ES_JSON_NONE || json->nodes[files].kind != ES_JSON_OBJECT ||
        json->nodes[files].children != 2 * (uint32_t)(w->count - 1))
        return false;
    for (uint32_t each = files + 1; each < json->nodes[files].next;) {
        char name[ES_MAX_NAME];
        const es_sum *sum =
            es_json_string(json, each, name, sizeof name) ? find_sum(w, name) : NULL;
        if (sum == NULL || strcmp(name, manifest_name) == 0 ||
            !es_json_is(json, each + 1, sum->digest) ||
            es_json_get(json, files, name) == ES_JSON_NONE) /* there twice */
            return false;
        each = json->nodes[each + 1].next;
    }
    const es_names *named[] = {&w->bundle->manifest.models, &w->bundle->manifest.frames,
                               &w->bundle->manifest.masks};
    for (size_t kind = 0; kind < 3; kind++)
        for (int i = 0; i < named[kind]->count; i++)
            if (strcmp(named[kind]->name[i], manifest_name) == 0 ||
                find_sum(w, named[kind]->name[i]) == NULL)
                return false;
    return true;
}

static int read_manifest(const walk *w, const es_blob *text, const char *engine) {
    size_t unused = 0, count = es_json_parse((const char *)text->bytes, text->count, NULL, 0);
    if (count == 0)
        return es_fail(w->message, ES_ERR_MANIFEST_FIELD,
                       "manifest.json is no JSON; export the bundle again");
    es_json_node *nodes = es_allocate(count, sizeof *nodes, &unused);
    if (nodes == NULL) return no_memory(w->message, manifest_name);
    es_json json = {(const char *)text->bytes, nodes};
    es_json_parse(json.text, text->count, nodes, count);
    int status = es_manifest_read(&json, engine, &w->bundle->manifest, w->message);
    if (status == ES_OK && !lists_the_same(&json, w))
        status = es_fail(w->message, ES_ERR_MANIFEST_FIELD,
                         "manifest.json does not list the bundle's files; export it again");
    free(nodes);
    return status;
}

/* Verifies what SHA256SUMS and manifest.json say, then every file. */
static int check_bundle(walk *w, int folder, es_blob *sums, es_blob *manifest, const char *engine) {
    char digest[65];
    size_t freed = 0; /* these two are not kept */
    int status =
        read_small(folder, sums_name, sums, &freed, w->bundle->sha256, w->message);
    if (status != ES_OK) return status;
    status = read_small(folder, manifest_name, manifest, &freed, digest, w->message);
    if (status != ES_OK) return status;
    w->sums = es_allocate(MAX_SUMS, sizeof *w->sums, &freed);
    if (w->sums == NULL) return no_memory(w->message, sums_name);
    w->count = es_sums_parse((char *)sums->bytes, sums->count, w->sums, MAX_SUMS);
    if (w->count < 0) return changed(w->message, sums_name);
    const es_sum *own = find_sum(w, manifest_name);
    if (own == NULL || strcmp(own->digest, digest) != 0) return changed(w->message, manifest_name);
    status = read_manifest(w, manifest, engine);
    if (status != ES_OK) return status;
    int walked = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (walked < 0) return changed(w->message, "the folder");
    status = check_folder(w, walked, 0, 0);
    for (int i = 0; status == ES_OK && i < w->count; i++)
        if (!w->sums[i].seen) status = changed(w->message, w->sums[i].name);
    return status;
}

int es_bundle_open(const char *path, const char *engine, es_bundle *bundle, char *message) {
    walk w = {.bundle = bundle, .message = message};
    es_blob sums = {NULL, 0}, manifest = {NULL, 0};
    memset(bundle, 0, sizeof *bundle);
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return es_fail(message, ES_ERR_BUNDLE_MISSING,
                       "%.150s is no folder; make a bundle with `edgeseg export`", path);
    int status = check_bundle(&w, folder, &sums, &manifest, engine);
    close(folder);
    free(w.sums);
    free(sums.bytes);
    free(manifest.bytes);
    if (status != ES_OK) es_bundle_close(bundle);
    return status;
}

void es_bundle_close(es_bundle *bundle) {
    for (int i = 0; i < ES_MAX_MODEL_FILES; i++) free(bundle->models[i].bytes);
    for (int i = 0; i < ES_MAX_VECTORS; i++) {
        free(bundle->frames[i].bytes);
        free(bundle->masks[i].bytes);
    }
    memset(bundle->models, 0, sizeof bundle->models);
    memset(bundle->frames, 0, sizeof bundle->frames);
    memset(bundle->masks, 0, sizeof bundle->masks);
}

int es_verify(const char *folder, char *message) {
    if (message != NULL) *message = '\0';
    if (folder == NULL) return es_fail(message, ES_ERR_ARGUMENT, "folder is NULL");
    size_t unused = 0;
    es_bundle *bundle = es_allocate(1, sizeof *bundle, &unused);
    if (bundle == NULL) return no_memory(message, "a bundle");
    int status = es_bundle_open(folder, "", bundle, message);
    if (status == ES_OK) es_bundle_close(bundle);
    free(bundle);
    return status;
}
