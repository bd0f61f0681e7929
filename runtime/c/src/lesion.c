/* Connected components of a mask, by union-find over the runs of its rows (He et al. 2008). */
#include <string.h>

#include "internal.h"

size_t es_max_runs(int width, int height) {
    return ((size_t)width + 1) / 2 * (size_t)height;
}

static uint32_t root_of(es_run *runs, uint32_t run) {
    while (runs[run].parent != run) {
        runs[run].parent = runs[runs[run].parent].parent;
        run = runs[run].parent;
    }
    return run;
}

/* The first run of a component is its root, so that the root's row is the component's top. */
static void join(es_run *runs, uint32_t one, uint32_t other) {
    one = root_of(runs, one);
    other = root_of(runs, other);
    if (one == other) return;
    if (other < one) {
        uint32_t swap = one;
        one = other;
        other = swap;
    }
    es_run *into = &runs[one];
    const es_run *from = &runs[other];
    runs[other].parent = one;
    into->area += from->area;
    into->border = into->border || from->border;
    if (from->left < into->left) into->left = from->left;
    if (from->right > into->right) into->right = from->right;
    if (from->bottom > into->bottom) into->bottom = from->bottom;
}

/* Finds the runs of value in a mask and joins those that touch; reach: 1 also over corners. */
static uint32_t label(const uint8_t *mask, int width, int height, uint8_t value, int reach,
                      es_run *runs) {
    uint32_t count = 0, row_begin = 0;
    for (int y = 0; y < height; y++, mask += width) {
        uint32_t above = row_begin, above_end = count;
        row_begin = count;
        for (int x = 0; x < width;) {
            if (mask[x] != value) {
                x++;
                continue;
            }
            int start = x;
            while (x < width && mask[x] == value) x++;
            bool border = y == 0 || y == height - 1 || start == 0 || x == width;
            es_run run = {count, (uint32_t)(x - start), (uint16_t)y, (uint16_t)start, (uint16_t)x,
                          (uint16_t)start, (uint16_t)x, (uint16_t)(y + 1), border, 0};
            runs[count] = run;
            while (above < above_end && runs[above].end + reach <= start) above++;
            for (uint32_t each = above; each < above_end && runs[each].start < x + reach; each++)
                join(runs, count, each);
            count++;
        }
    }
    return count;
}

static void paint(uint8_t *mask, int width, const es_run *run, uint8_t value) {
    memset(mask + (size_t)run->row * (size_t)width + run->start, value,
           (size_t)(run->end - run->start));
}

void es_fill_holes(uint8_t *mask, int width, int height, es_run *runs) {
    uint32_t count = label(mask, width, height, 0, 0, runs);
    for (uint32_t i = 0; i < count; i++)
        if (!runs[root_of(runs, i)].border) paint(mask, width, &runs[i], 1);
}

/* Whether component a comes before b: larger, or of the smaller (left, top, right, bottom). */
static bool comes_first(const es_run *a, const es_run *b) {
    if (a->area != b->area) return a->area > b->area;
    if (a->left != b->left) return a->left < b->left;
    if (a->row != b->row) return a->row < b->row;
    if (a->right != b->right) return a->right < b->right;
    return a->bottom < b->bottom;
}

void es_keep_largest(uint8_t *mask, int width, int height, es_run *runs) {
    uint32_t count = label(mask, width, height, 1, 1, runs), best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (runs[i].parent == i && comes_first(&runs[i], &runs[best])) best = i;
    for (uint32_t i = 0; i < count; i++)
        if (root_of(runs, i) != best) paint(mask, width, &runs[i], 0);
}

void es_drop_small(float *logits, size_t stride, uint8_t *mask, int width, int height, float level,
                   uint32_t least_px, float least_logit, float to, es_run *runs) {
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            mask[(size_t)y * (size_t)width + (size_t)x] = logits[(size_t)y * stride + (size_t)x] > level;
    uint32_t count = label(mask, width, height, 1, 1, runs);
    for (uint32_t i = 0; i < count; i++) runs[i].peak = level; /* below every pixel of a run */
    for (uint32_t i = 0; i < count; i++) {
        es_run *root = &runs[root_of(runs, i)];
        const float *row = logits + (size_t)runs[i].row * stride;
        for (int x = runs[i].start; x < runs[i].end; x++)
            if (row[x] > root->peak) root->peak = row[x];
    }
    for (uint32_t i = 0; i < count; i++) {
        const es_run *root = &runs[root_of(runs, i)];
        if (root->area >= least_px && root->peak >= least_logit) continue;
        float *row = logits + (size_t)runs[i].row * stride;
        for (int x = runs[i].start; x < runs[i].end; x++) row[x] = to;
    }
}
