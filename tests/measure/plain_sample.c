/* What an engineer writes without edgeseg, for tests/measure/footprint_c.py:
 *
 *     plain MODEL WIDTH HEIGHT MEAN STD LEVEL < frame.pgm > mask.pgm
 *
 * Nothing is verified, and a bilinear resize takes two pixels a side, as most hand-written ones do.
 */
#include "plain_sample.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static float *allocate(int width, int height) {
    float *values = malloc((size_t)width * (size_t)height * sizeof *values);
    if (values == NULL) abort();
    return values;
}

/* The two neighbours of a pixel of the result, and how much of the second. */
static float neighbours(int index, int size, int result_size, int *first, int *second) {
    float place = ((float)index + 0.5f) * (float)size / (float)result_size - 0.5f;
    if (place < 0) place = 0;
    *first = (int)place;
    *second = *first + 1 < size ? *first + 1 : *first;
    return place - (float)*first;
}

static float *resized(const float *from, int width, int height, int to_width, int to_height) {
    float *to = allocate(to_width, to_height);
    for (int y = 0; y < to_height; y++) {
        int top, below;
        float down = neighbours(y, height, to_height, &top, &below);
        for (int x = 0; x < to_width; x++) {
            int left, right;
            float across = neighbours(x, width, to_width, &left, &right);
            float upper = from[top * width + left] * (1 - across) + from[top * width + right] * across;
            float lower =
                from[below * width + left] * (1 - across) + from[below * width + right] * across;
            to[y * to_width + x] = upper * (1 - down) + lower * down;
        }
    }
    return to;
}

int main(int count, char **arguments) {
    int width, height;
    if (count != 7 || scanf("P5 %d %d 255", &width, &height) != 2 || getchar() == EOF) return 2;
    int small_width = atoi(arguments[2]), small_height = atoi(arguments[3]);
    float mean = (float)atof(arguments[4]), std = (float)atof(arguments[5]);
    float level = (float)atof(arguments[6]);
    float *frame = allocate(width, height);
    for (int i = 0; i < width * height; i++) frame[i] = ((float)getchar() / 255 - mean) / std;
    float *image = resized(frame, width, height, small_width, small_height);
    float *logits = allocate(small_width, small_height);
    if (infer(arguments[1], image, logits, small_width, small_height) != 0) return 1;
    float *whole = resized(logits, small_width, small_height, width, height);
    unsigned char *mask = (unsigned char *)whole; /* each byte lies before the pixel it is of */
    for (int i = 0; i < width * height; i++) mask[i] = whole[i] > level ? 255 : 0;
    printf("P5\n%d %d\n255\n", width, height);
    fwrite(mask, 1, (size_t)width * (size_t)height, stdout);
    free(whole);
    free(logits);
    free(image);
    free(frame);
    return fflush(stdout) != 0;
}
