/* A bundle as a folder: walked once, each file opened once, none followed as a link. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define MAX_DEPTH 8 /* of folders in a bundle */

typedef struct walk {
    es_visit *visit;
    void *context;
    char *message;
    char path[ES_MAX_NAME]; /* of what is looked at, from the bundle's folder */
} walk;

/* Opens a plain file that is no link; path: what a message calls it. */
static int open_plain(int folder, const char *name, const char *path, es_file *file,
                      char *message) {
    struct stat info;
    memset(file, 0, sizeof *file);
    file->descriptor = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file->descriptor < 0 && errno == ENOENT)
        return es_fail(message, ES_ERR_BUNDLE_MISSING,
                       "there is no %.150s; make a bundle with `edgeseg export`", path);
    if (file->descriptor < 0 && errno != ELOOP) return es_changed(message, path);
    if (file->descriptor >= 0 && fstat(file->descriptor, &info) == 0 && S_ISREG(info.st_mode)) {
        file->size = (uint64_t)info.st_size;
        return ES_OK;
    }
    if (file->descriptor >= 0) close(file->descriptor);
    return es_fail(message, ES_ERR_BUNDLE_LINK, "%.150s is a link or no plain file", path);
}

static int find(const es_store *store, const char *name, es_file *file, char *message) {
    return open_plain(store->descriptor, name, name, file, message);
}

static int visit_file(walk *w, int folder, const char *name) {
    es_file file;
    int status = open_plain(folder, name, w->path, &file, w->message);
    if (status == ES_ERR_BUNDLE_MISSING) return es_changed(w->message, w->path); /* since listed */
    if (status != ES_OK) return status;
    status = w->visit(w->context, w->path, &file);
    es_file_close(&file);
    return status;
}

/* Shows every entry of a folder, which is taken over and closed. */
static int visit_folder(walk *w, int folder, size_t used, int depth) {
    DIR *entries = fdopendir(folder);
    if (entries == NULL) {
        close(folder);
        return es_no_memory(w->message, "a folder");
    }
    int status = ES_OK;
    struct dirent *entry;
    while (status == ES_OK && (errno = 0, entry = readdir(entries)) != NULL) {
        const char *name = entry->d_name;
        struct stat info;
        size_t length = strlen(name);
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        if (used + length + 2 > sizeof w->path) {
            status = es_changed(w->message, name);
            break;
        }
        memcpy(w->path + used, name, length + 1);
        if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
            status = es_changed(w->message, w->path);
        } else if (S_ISDIR(info.st_mode)) {
            int below = depth == MAX_DEPTH
                            ? -1
                            : openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            memcpy(w->path + used + length, "/", 2);
            status = below < 0 ? es_changed(w->message, w->path)
                               : visit_folder(w, below, used + length + 1, depth + 1);
        } else {
            status = visit_file(w, folder, name);
        }
    }
    if (status == ES_OK && errno != 0) status = es_changed(w->message, "the folder");
    closedir(entries);
    return status;
}

static int walk_folder(const es_store *store, es_visit *visit, void *context, char *message) {
    walk w = {.visit = visit, .context = context, .message = message};
    int walked = openat(store->descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (walked < 0) return es_changed(message, "the folder");
    return visit_folder(&w, walked, 0, 0);
}

const es_store_kind es_store_folder = {find, walk_folder};
