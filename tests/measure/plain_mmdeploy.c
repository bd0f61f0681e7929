/* A frame through the C interface of MMDeploy's SDK 1.3, for tests/measure/footprint_c.py:
 *
 *     mmdeploy FOLDER LEVEL < frame.pgm > mask.pgm
 *
 * Its wheel brings the library and no header, so what is needed of the interface is declared here.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct mat {
    uint8_t *data;
    int height, width, channel, format, type;
    void *device;
};

struct segmentation {
    int height, width, classes, *mask;
    float *score;
};

int mmdeploy_segmentor_create_by_path(const char *path, const char *device, int id, void **made);
int mmdeploy_segmentor_apply(void *segmentor, const struct mat *frames, int count,
                             struct segmentation **results);
void mmdeploy_segmentor_release_result(struct segmentation *results, int count);
void mmdeploy_segmentor_destroy(void *segmentor);

enum { GREYSCALE = 2, UINT8 = 2 };

int main(int count, char **arguments) {
    int width, height;
    FILE *out = fdopen(dup(STDOUT_FILENO), "wb"); /* the SDK logs to stdout */
    if (out == NULL || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) return 2;
    if (count != 3 || scanf("P5 %d %d 255", &width, &height) != 2 || getchar() == EOF) return 2;
    size_t pixels = (size_t)width * (size_t)height;
    uint8_t *frame = malloc(pixels);
    if (frame == NULL || fread(frame, 1, pixels, stdin) != pixels) return 2;
    struct mat mat = {frame, height, width, 1, GREYSCALE, UINT8, NULL};
    struct segmentation *result;
    void *segmentor;
    if (mmdeploy_segmentor_create_by_path(arguments[1], "cpu", 0, &segmentor) != 0) return 1;
    if (mmdeploy_segmentor_apply(segmentor, &mat, 1, &result) != 0) return 1;
    float level = (float)atof(arguments[2]);
    for (size_t i = 0; i < pixels; i++) frame[i] = result->score[i] > level ? 255 : 0;
    fprintf(out, "P5\n%d %d\n255\n", width, height);
    fwrite(frame, 1, pixels, out);
    mmdeploy_segmentor_release_result(result, 1);
    mmdeploy_segmentor_destroy(segmentor);
    free(frame);
    return fclose(out) != 0;
}
