/* The bundle: its hashes are read, then the signature if a key was given, then the manifest; every
 * file is hashed as it is read, once. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define MAX_SUMS (ES_MAX_MANIFEST / 68) /* lines: 64 digits, 2 blanks, a letter, a line end */
static const char manifest_name[] = "manifest.json", sums_name[] = "SHA256SUMS";

typedef struct checking {
    es_bundle *bundle;
    es_sum *sums;
    int count;
    char *message;
} checking;

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

static es_sum *find_sum(const checking *c, const char *name) {
    return bsearch(name, c->sums, (size_t)c->count, sizeof *c->sums, by_name);
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

/* Compares a file of the store with its hash and keeps it if it is needed. */
static int check_file(void *context, const char *name, const es_file *file) {
    checking *c = context;
    char digest[65];
    size_t unused = 0;
    if (strcmp(name, sums_name) == 0) return ES_OK; /* read already */
    if (strcmp(name, ES_SIGNATURE) == 0) /* read already, or not asked for; in no list of hashes */
        return file->packed ? es_file_read(file, name, NULL, &unused, digest, c->message) : ES_OK;
    es_sum *sum = find_sum(c, name);
    if (sum == NULL || sum->seen) return es_changed(c->message, name);
    int status = es_file_read(file, name, place_of(c->bundle, name), &c->bundle->total, digest,
                              c->message);
    if (status != ES_OK) return status;
    if (strcmp(digest, sum->digest) != 0) return es_changed(c->message, name);
    if (!es_name_is_plain(name, strlen(name))) return es_bad_name(c->message, name, strlen(name));
    sum->seen = true;
    return ES_OK;
}

/* Reads manifest.json or SHA256SUMS and its hash. */
static int read_small(const es_store *store, const char *name, es_blob *blob, char digest[65],
                      char *message) {
    es_file file;
    size_t freed = 0; /* it is not kept */
    int status = store->kind->find(store, name, &file, message);
    if (status != ES_OK) return status;
    status = file.size > ES_MAX_MANIFEST
                 ? es_fail(message, ES_ERR_MANIFEST_SIZE, "%s is over %u bytes", name,
                           ES_MAX_MANIFEST)
                 : es_file_read(&file, name, blob, &freed, digest, message);
    es_file_close(&file);
    return status;
}

/* Whether the manifest's `files` are the lines of SHA256SUMS without the manifest's own. */
static bool lists_the_same(const es_json *json, const checking *c) {
    uint32_t files = es_json_get(json, 0, "files");
    if (files == ES_JSON_NONE || json->nodes[files].kind != ES_JSON_OBJECT ||
        json->nodes[files].children != 2 * (uint32_t)(c->count - 1))
        return false;
    for (uint32_t each = files + 1; each < json->nodes[files].next;) {
        char name[ES_MAX_NAME];
        const es_sum *sum =
            es_json_string(json, each, name, sizeof name) ? find_sum(c, name) : NULL;
        if (sum == NULL || strcmp(name, manifest_name) == 0 ||
            !es_json_is(json, each + 1, sum->digest) ||
            es_json_get(json, files, name) == ES_JSON_NONE) /* there twice */
            return false;
        each = json->nodes[each + 1].next;
    }
    const es_names *named[] = {&c->bundle->manifest.models, &c->bundle->manifest.frames,
                               &c->bundle->manifest.masks};
    for (size_t kind = 0; kind < 3; kind++)
        for (int i = 0; i < named[kind]->count; i++)
            if (strcmp(named[kind]->name[i], manifest_name) == 0 ||
                find_sum(c, named[kind]->name[i]) == NULL)
                return false;
    return true;
}

static int read_manifest(const checking *c, const es_blob *text, const char *engine) {
    size_t unused = 0, count = es_json_parse((const char *)text->bytes, text->count, NULL, 0);
    if (count == 0)
        return es_fail(c->message, ES_ERR_MANIFEST_FIELD,
                       "manifest.json is no JSON; export the bundle again");
    es_json_node *nodes = es_allocate(count, sizeof *nodes, &unused);
    if (nodes == NULL) return es_no_memory(c->message, manifest_name);
    es_json json = {(const char *)text->bytes, nodes};
    es_json_parse(json.text, text->count, nodes, count);
    int status = es_manifest_read(&json, engine, &c->bundle->manifest, c->message);
    if (status == ES_OK && !lists_the_same(&json, c))
        status = es_fail(c->message, ES_ERR_MANIFEST_FIELD,
                         "manifest.json does not list the bundle's files; export it again");
    free(nodes);
    return status;
}

/* Verifies the hashes that SHA256SUMS has. */
static int check_files(checking *c, const es_store *store, const es_blob *sums,
                       const es_blob *manifest, const char *manifest_digest, const char *engine) {
    c->count = es_sums_parse((char *)sums->bytes, sums->count, c->sums, MAX_SUMS);
    if (c->count < 0) return es_changed(c->message, sums_name);
    const es_sum *own = find_sum(c, manifest_name);
    if (own == NULL || strcmp(own->digest, manifest_digest) != 0)
        return es_changed(c->message, manifest_name);
    int status = read_manifest(c, manifest, engine);
    if (status == ES_OK) status = store->kind->walk(store, check_file, c, c->message);
    for (int i = 0; status == ES_OK && i < c->count; i++)
        if (!c->sums[i].seen) status = es_changed(c->message, c->sums[i].name);
    return status;
}

static int check_bundle(es_bundle *bundle, const es_store *store, const char *key,
                        const char *engine, char *message) {
    checking c = {.bundle = bundle, .message = message};
    es_blob sums = {NULL, 0}, manifest = {NULL, 0};
    char digest[65];
    size_t freed = 0;
    int status = read_small(store, sums_name, &sums, bundle->sha256, message);
    if (status == ES_OK) status = read_small(store, manifest_name, &manifest, digest, message);
    if (status == ES_OK && key != NULL)
        status = es_signature_require(store, key, bundle->sha256, message);
    if (status == ES_OK) {
        c.sums = es_allocate(MAX_SUMS, sizeof *c.sums, &freed);
        status = c.sums == NULL ? es_no_memory(message, sums_name)
                                : check_files(&c, store, &sums, &manifest, digest, engine);
    }
    free(c.sums);
    free(sums.bytes);
    free(manifest.bytes);
    return status;
}

int es_bundle_open(const char *path, const char *key, const char *engine, es_bundle *bundle,
                   char *message) {
    es_store store;
    memset(bundle, 0, sizeof *bundle);
    int status = es_store_open(path, &store, message);
    if (status != ES_OK) return status;
    status = check_bundle(bundle, &store, key, engine, message);
    es_store_close(&store);
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

int es_verify(const char *bundle, const char *key, char *message) {
    if (message != NULL) *message = '\0';
    if (bundle == NULL) return es_fail(message, ES_ERR_ARGUMENT, "bundle is NULL");
    size_t unused = 0;
    es_bundle *opened = es_allocate(1, sizeof *opened, &unused);
    if (opened == NULL) return es_no_memory(message, "a bundle");
    int status = es_bundle_open(bundle, key, "", opened, message);
    if (status == ES_OK) es_bundle_close(opened);
    free(opened);
    return status;
}
