/* Changes single bytes of a bundle and counts what es_verify accepts: edgeseg-tamper BUNDLE STEP [KEY]
 *
 * Every STEP-th byte of every file is changed in place, verified, and put back; what a folder has of a
 * signature is refused only with the KEY. BUNDLE, a folder or a packed file, must be a copy. Prints "TRIED ACCEPTED"; returns 1 if one was accepted or the bundle is not
 * accepted before and after. */
#define _XOPEN_SOURCE 700
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgeseg.h"

static const char *bundle, *key;
static long step, tried, accepted;

static int try_file(const char *path, const struct stat *info, int kind, struct FTW *place) {
    (void)place;
    if (kind != FTW_F) return 0;
    FILE *file = fopen(path, "r+b");
    if (file == NULL) return 1;
    for (long at = 0; at < (long)info->st_size; at += step, tried++) {
        fseek(file, at, SEEK_SET);
        int byte = fgetc(file), changed = byte ^ 1 << (tried % 8);
        fseek(file, at, SEEK_SET);
        fputc(changed, file);
        fflush(file);
        if (es_verify(bundle, key, NULL) == ES_OK) {
            printf("%s: byte %ld\n", path, at);
            accepted++;
        }
        fseek(file, at, SEEK_SET);
        fputc(byte, file);
        fflush(file);
    }
    return fclose(file) != 0;
}

int main(int count, char **arguments) {
    if (count < 3 || count > 4 || (step = atol(arguments[2])) < 1) return 2;
    bundle = arguments[1];
    key = arguments[3]; /* NULL behind the last */
    if (es_verify(bundle, key, NULL) != ES_OK) return 1;
    if (nftw(bundle, try_file, 16, FTW_PHYS) != 0) return 1;
    printf("%ld %ld\n", tried, accepted);
    return accepted != 0 || es_verify(bundle, key, NULL) != ES_OK;
}
