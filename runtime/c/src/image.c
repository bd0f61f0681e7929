/* From a frame to the network's input, and from its logits to the frame's mask.
 *
 * Equal to edgeseg.runtime.image to the last bit; -ffp-contract=off keeps it so. The resize is the
 * one of Pillow 13 for 8-bit pictures: whole numbers, rounded after the box reduction and after
 * each of two passes.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define WEIGHT_BITS 22 /* of Pillow's weights, PRECISION_BITS in its Resample.c */

static size_t area(int width, int height) { return (size_t)width * (size_t)height; }

static bool open_taps(es_taps *taps, int size, size_t *total) {
    taps->first = es_allocate((size_t)size, sizeof *taps->first, total);
    taps->count = es_allocate((size_t)size, sizeof *taps->count, total);
    taps->weights = es_allocate((size_t)size, ES_TAPS * sizeof *taps->weights, total);
    return taps->first != NULL && taps->count != NULL && taps->weights != NULL;
}

bool es_canvas_open(es_canvas *canvas, int network_width, int network_height, int max_width,
                    int max_height, size_t *total) {
    size_t network = area(network_width, network_height);
    size_t width = (size_t)max_width, height = (size_t)max_height;
    memset(canvas, 0, sizeof *canvas);
    canvas->network_width = network_width;
    canvas->network_height = network_height;
    canvas->max_width = max_width;
    canvas->max_height = max_height;
    canvas->reduced = es_allocate(4 * network, 1, total);
    canvas->between = es_allocate(2 * network, 1, total);
    canvas->small = es_allocate(network, 1, total);
    canvas->x_low = es_allocate(width, sizeof *canvas->x_low, total);
    canvas->x_up = es_allocate(width, sizeof *canvas->x_up, total);
    canvas->x_weight = es_allocate(width, sizeof *canvas->x_weight, total);
    canvas->y_low = es_allocate(height, sizeof *canvas->y_low, total);
    canvas->y_up = es_allocate(height, sizeof *canvas->y_up, total);
    canvas->y_weight = es_allocate(height, sizeof *canvas->y_weight, total);
    canvas->line[0] = es_allocate(width, sizeof(float), total);
    canvas->line[1] = es_allocate(width, sizeof(float), total);
    return open_taps(&canvas->across, network_width, total) &&
           open_taps(&canvas->down, network_height, total) && canvas->reduced != NULL &&
           canvas->between != NULL && canvas->small != NULL && canvas->x_low != NULL &&
           canvas->x_up != NULL && canvas->x_weight != NULL && canvas->y_low != NULL &&
           canvas->y_up != NULL && canvas->y_weight != NULL && canvas->line[0] != NULL &&
           canvas->line[1] != NULL;
}

void es_canvas_close(es_canvas *canvas) {
    void *all[] = {canvas->reduced,       canvas->between,      canvas->small,
                   canvas->x_low,         canvas->x_up,         canvas->x_weight,
                   canvas->y_low,         canvas->y_up,         canvas->y_weight,
                   canvas->line[0],       canvas->line[1],      canvas->across.first,
                   canvas->across.count,  canvas->across.weights, canvas->down.first,
                   canvas->down.count,    canvas->down.weights};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    memset(canvas, 0, sizeof *canvas);
}

void es_grey_from_rgb(const uint8_t *rgb, int width, int height, size_t stride, uint8_t *grey) {
    for (int y = 0; y < height; y++, rgb += stride)
        for (int x = 0; x < width; x++) { /* ITU-R BT.601 in 16 bits, rounded */
            const uint8_t *p = rgb + 3 * (size_t)x;
            *grey++ = (uint8_t)((p[0] * 19595u + p[1] * 38470u + p[2] * 7471u + 0x8000u) >> 16);
        }
}

/* Side in px of the boxes that are averaged along an axis before it is resized. */
static int reduction_factor(int size_in, int size_out) {
    int factor = (int)((double)size_in / size_out + 0.2);
    return factor > 0 ? factor : 1;
}

/* The rounded mean of each box, of what is left of it at the right and lower edge. */
static void reduce(const uint8_t *in, int width, int height, size_t stride, int across, int down,
                   uint8_t *out) {
    for (int top = 0; top < height; top += down) {
        int rows = height - top < down ? height - top : down;
        for (int left = 0; left < width; left += across) {
            int columns = width - left < across ? width - left : across;
            uint32_t pixels = (uint32_t)(rows * columns), sum = pixels / 2;
            for (int y = 0; y < rows; y++) {
                const uint8_t *row = in + (size_t)(top + y) * stride + left;
                for (int x = 0; x < columns; x++) sum += row[x];
            }
            *out++ = (uint8_t)(sum * ((1u << 24) / pixels) >> 24); /* the divisor is cut */
        }
    }
}

/* Weights of a triangle that widens with the reduction, for one axis. */
static void fill_taps(es_taps *taps, int size_in, int size_out) {
    double scale = (double)size_in / size_out, support = scale < 1 ? 1 : scale;
    double per_px = 1.0 / support;
    for (int out = 0; out < size_out; out++) {
        double centre = (out + 0.5) * scale, weights[ES_TAPS], sum = 0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (last > size_in) last = size_in;
        if (last - first > ES_TAPS) last = first + ES_TAPS; /* never: the ratio is below 2 */
        for (int x = first; x < last; x++) {
            double distance = fabs((x - centre + 0.5) * per_px);
            weights[x - first] = distance < 1 ? 1 - distance : 0;
            sum += weights[x - first];
        }
        for (int i = 0; i < last - first; i++)
            taps->weights[out * ES_TAPS + i] =
                (int32_t)(0.5 + weights[i] / sum * (1 << WEIGHT_BITS));
        taps->first[out] = first;
        taps->count[out] = last - first;
    }
}

/* Resizes one axis. step: px between neighbours along it, line: to the next row or column. */
static void resize_pass(const es_taps *taps, int size_out, int lines, const uint8_t *in,
                        size_t step, size_t line, uint8_t *out, size_t out_step, size_t out_line) {
    for (int i = 0; i < lines; i++)
        for (int each = 0; each < size_out; each++) {
            const uint8_t *from = in + (size_t)i * line + (size_t)taps->first[each] * step;
            const int32_t *weights = taps->weights + each * ES_TAPS;
            int32_t sum = 1 << (WEIGHT_BITS - 1);
            for (int tap = 0; tap < taps->count[each]; tap++)
                sum += from[(size_t)tap * step] * weights[tap];
            sum >>= WEIGHT_BITS;
            out[(size_t)i * out_line + (size_t)each * out_step] = (uint8_t)(sum > 255 ? 255 : sum);
        }
}

void es_resize_grey(es_canvas *canvas, const uint8_t *grey, int width, int height,
                    size_t stride) {
    int to_width = canvas->network_width, to_height = canvas->network_height;
    int across = reduction_factor(width, to_width), down = reduction_factor(height, to_height);
    if (across > 1 || down > 1) {
        reduce(grey, width, height, stride, across, down, canvas->reduced);
        width = (width + across - 1) / across;
        height = (height + down - 1) / down;
        grey = canvas->reduced;
        stride = (size_t)width;
    }
    size_t row = (size_t)to_width;
    if (width != to_width) fill_taps(&canvas->across, width, to_width);
    if (height != to_height) fill_taps(&canvas->down, height, to_height);
    if (width == to_width && height == to_height) {
        for (int y = 0; y < height; y++) memcpy(canvas->small + (size_t)y * row,
                                                grey + (size_t)y * stride, row);
    } else if (height == to_height) {
        resize_pass(&canvas->across, to_width, height, grey, 1, stride, canvas->small, 1, row);
    } else if (width == to_width) {
        resize_pass(&canvas->down, to_height, width, grey, stride, 1, canvas->small, row, 1);
    } else if (height > to_height && height - to_height > 2 * (width - to_width)) {
        /* Pillow 13 begins with the axis that shrinks far more; the order decides some roundings. */
        size_t wide = (size_t)width;
        resize_pass(&canvas->down, to_height, width, grey, stride, 1, canvas->between, wide, 1);
        resize_pass(&canvas->across, to_width, to_height, canvas->between, 1, wide, canvas->small,
                    1, row);
    } else {
        resize_pass(&canvas->across, to_width, height, grey, 1, stride, canvas->between, 1, row);
        resize_pass(&canvas->down, to_height, to_width, canvas->between, row, 1, canvas->small,
                    row, 1);
    }
}

void es_normalise(const es_canvas *canvas, const es_contract *contract, float *image) {
    /* (g / 255 - mean) / std as one multiplication and one subtraction */
    float scale = (float)(1 / (255 * contract->std));
    float offset = (float)(contract->mean / contract->std);
    size_t count = area(canvas->network_width, canvas->network_height);
    for (size_t i = 0; i < count; i++) image[i] = (float)canvas->small[i] * scale - offset;
}

static void bilinear_taps(int size_in, int size_out, int32_t *low, int32_t *up, float *weight) {
    double ratio = (double)size_in / size_out;
    for (int i = 0; i < size_out; i++) { /* half-pixel centres */
        double position = (i + 0.5) * ratio - 0.5;
        if (position < 0) position = 0;
        if (position > size_in - 1) position = size_in - 1;
        low[i] = (int32_t)position;
        up[i] = low[i] + 1 < size_in ? low[i] + 1 : size_in - 1;
        weight[i] = (float)(position - low[i]);
    }
}

/* Index of the first element that is at least value, of ascending ones. */
static int search(const int32_t *ascending, int count, int32_t value) {
    int low = 0, high = count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (ascending[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The box around logits above the level; false where there are none. */
static bool box_above(const float *logits, int width, int height, float level, es_box *box) {
    box->left = width;
    box->right = box->bottom = 0;
    box->top = height;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            if (logits[area(width, y) + (size_t)x] > level) {
                if (x < box->left) box->left = x;
                if (x >= box->right) box->right = x + 1;
                if (y < box->top) box->top = y;
                box->bottom = y + 1;
            }
    return box->bottom > 0;
}

static double logit(double probability) { return log(probability / (1 - probability)); }

bool es_contract_drops(const es_contract *contract) {
    return contract->least_area > 0 || contract->least_peak > 0;
}

void es_drop_components(es_canvas *canvas, const es_contract *contract, float *logits,
                        es_run *runs) {
    int width = canvas->network_width, height = canvas->network_height;
    double level = logit(contract->threshold);
    double least_px = ceil(contract->least_area * (double)area(width, height));
    double least = contract->least_peak > 0 ? logit(contract->least_peak) : level;
    /* A margin below the level: low + (up - low) * weight may come out above both in float. */
    es_drop_small(logits, canvas->small, width, height, (float)level, (uint32_t)least_px,
                  (float)least, (float)(level - 1), runs);
}

void es_mask_from_logits(es_canvas *canvas, const float *logits, double threshold, int width,
                         int height, uint8_t *mask, size_t mask_stride) {
    int from_width = canvas->network_width, from_height = canvas->network_height;
    float level = (float)logit(threshold);
    es_box box;
    for (int y = 0; y < height; y++) memset(mask + (size_t)y * mask_stride, 0, (size_t)width);
    if (!box_above(logits, from_width, from_height, level, &box)) return;
    if (canvas->taps_width != width)
        bilinear_taps(from_width, width, canvas->x_low, canvas->x_up, canvas->x_weight);
    if (canvas->taps_height != height)
        bilinear_taps(from_height, height, canvas->y_low, canvas->y_up, canvas->y_weight);
    canvas->taps_width = width;
    canvas->taps_height = height;
    /* Output pixels one of whose taps lies in the box; outside it nothing is above the level. */
    int x0 = search(canvas->x_up, width, box.left), x1 = search(canvas->x_low, width, box.right);
    int y0 = search(canvas->y_up, height, box.top), y1 = search(canvas->y_low, height, box.bottom);
    int32_t held[2] = {-1, -1}; /* which row of logits each line holds, interpolated across */
    for (int y = y0; y < y1; y++) {
        int32_t rows[2] = {canvas->y_low[y], canvas->y_up[y]};
        for (int i = 0; i < 2; i++) {
            int slot = rows[i] & 1;
            if (held[slot] == rows[i]) continue;
            const float *from = logits + area(from_width, rows[i]);
            for (int x = x0; x < x1; x++) {
                float low = from[canvas->x_low[x]], up = from[canvas->x_up[x]];
                canvas->line[slot][x] = low + (up - low) * canvas->x_weight[x];
            }
            held[slot] = rows[i];
        }
        const float *low = canvas->line[rows[0] & 1], *up = canvas->line[rows[1] & 1];
        float weight = canvas->y_weight[y];
        uint8_t *out = mask + (size_t)y * mask_stride;
        for (int x = x0; x < x1; x++) out[x] = low[x] + (up[x] - low[x]) * weight > level;
    }
}

/* Whether the centre of pixel x, y lies in the fan: even-odd rule in exact integers. */
static bool in_fan(const es_layout *layout, int x, int y) {
    int64_t px = 2 * x + 1, py = 2 * y + 1; /* corners are doubled too */
    bool inside = false;
    for (int i = 0; i < layout->corners; i++) {
        const int *a = layout->fan[i], *b = layout->fan[(i + 1) % layout->corners];
        int64_t ax = 2 * a[0], ay = 2 * a[1], bx = 2 * b[0], by = 2 * b[1];
        if ((ay <= py) == (by <= py)) continue;
        int64_t side = (px - ax) * (by - ay) - (py - ay) * (bx - ax);
        if (by > ay ? side < 0 : side > 0) inside = !inside; /* the edge crosses right of it */
    }
    return inside;
}

bool es_layout_keep(const es_layout *layout, uint8_t *keep) {
    bool any = false;
    const es_box *crop = &layout->crop;
    for (int y = crop->top; y < crop->bottom; y++)
        for (int x = crop->left; x < crop->right; x++) {
            bool kept = layout->corners == 0 || in_fan(layout, x, y);
            for (int i = 0; kept && i < layout->blanks; i++) {
                const es_box *blank = &layout->blank[i];
                kept = x < blank->left || x >= blank->right || y < blank->top || y >= blank->bottom;
            }
            any = any || kept;
            *keep++ = kept;
        }
    return any;
}
