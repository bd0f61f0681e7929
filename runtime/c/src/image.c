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

bool es_canvas_open(es_canvas *canvas, int network_width, int network_height, int classes,
                    int max_width, int max_height, size_t *total) {
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
    canvas->lines = es_allocate(width, 2 * (size_t)classes * sizeof(float), total);
    if (classes > 1) {
        canvas->best = es_allocate(width, sizeof(float), total);
        if (canvas->best == NULL) return false;
    }
    return open_taps(&canvas->across, network_width, total) &&
           open_taps(&canvas->down, network_height, total) && canvas->reduced != NULL &&
           canvas->between != NULL && canvas->small != NULL && canvas->x_low != NULL &&
           canvas->x_up != NULL && canvas->x_weight != NULL && canvas->y_low != NULL &&
           canvas->y_up != NULL && canvas->y_weight != NULL && canvas->lines != NULL;
}

void es_canvas_close(es_canvas *canvas) {
    void *all[] = {canvas->reduced,       canvas->between,      canvas->small,
                   canvas->x_low,         canvas->x_up,         canvas->x_weight,
                   canvas->y_low,         canvas->y_up,         canvas->y_weight,
                   canvas->lines,         canvas->best,         canvas->across.first,
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

void es_part_from_rgb(const uint8_t *rgb, int part, int width, int height, size_t stride,
                      uint8_t *grey) {
    for (int y = 0; y < height; y++, rgb += stride)
        for (int x = 0; x < width; x++) *grey++ = rgb[3 * (size_t)x + (size_t)part];
}

es_box es_inset_of(const es_contract *contract, int width, int height) {
    int64_t into_width = contract->width, into_height = contract->height;
    int64_t w = width, h = height;
    if (contract->letterbox) { /* the shorter side rounded half up */
        if (h * into_width <= w * into_height) into_height = (2 * h * into_width + w) / (2 * w);
        else into_width = (2 * w * into_height + h) / (2 * h);
        if (into_height < 1) into_height = 1;
        if (into_width < 1) into_width = 1;
    }
    es_box inset;
    inset.left = (contract->width - (int)into_width) / 2;
    inset.top = (contract->height - (int)into_height) / 2;
    inset.right = inset.left + (int)into_width;
    inset.bottom = inset.top + (int)into_height;
    return inset;
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
                    size_t stride, const es_box *inset) {
    int to_width = inset->right - inset->left, to_height = inset->bottom - inset->top;
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

void es_normalise(const es_canvas *canvas, const es_contract *contract, const es_box *inset,
                  int channel, float *image) {
    /* (g / 255 - mean) / std as one multiplication and one subtraction */
    float scale = (float)(1 / (255 * contract->std[channel]));
    float offset = (float)(contract->mean[channel] / contract->std[channel]);
    size_t count = area(contract->width, contract->height);
    float *out = image + (size_t)channel * count;
    if (!contract->letterbox) {
        for (size_t i = 0; i < count; i++) out[i] = (float)canvas->small[i] * scale - offset;
        return;
    }
    for (size_t i = 0; i < count; i++) out[i] = (float)contract->pad * scale - offset;
    const uint8_t *from = canvas->small;
    for (int y = inset->top; y < inset->bottom; y++)
        for (int x = inset->left; x < inset->right; x++)
            out[area(contract->width, y) + (size_t)x] = (float)*from++ * scale - offset;
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
static bool box_above(const float *logits, size_t stride, int width, int height, float level,
                      es_box *box) {
    box->left = width;
    box->right = box->bottom = 0;
    box->top = height;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            if (logits[(size_t)y * stride + (size_t)x] > level) {
                if (x < box->left) box->left = x;
                if (x >= box->right) box->right = x + 1;
                if (y < box->top) box->top = y;
                box->bottom = y + 1;
            }
    return box->bottom > 0;
}

static double logit(double probability) { return log(probability / (1 - probability)); }

bool es_contract_drops(const es_contract *contract) {
    for (int i = 0; i < contract->classes; i++)
        if (contract->of[i].least_area > 0 || contract->of[i].least_peak > 0) return true;
    return false;
}

/* The logits of a class where the frame is in the network's input. */
static size_t offset_of(const es_contract *contract, const es_box *inset, int index) {
    return (size_t)index * area(contract->width, contract->height) +
           area(contract->width, inset->top) + (size_t)inset->left;
}

void es_drop_components(es_canvas *canvas, const es_contract *contract, const es_box *inset,
                        float *logits, es_run *runs) {
    int width = inset->right - inset->left, height = inset->bottom - inset->top;
    for (int i = 0; i < contract->classes; i++) {
        const es_class *of = &contract->of[i];
        double level = logit(of->threshold);
        double least_px = ceil(of->least_area * (double)area(width, height));
        double least = of->least_peak > 0 ? logit(of->least_peak) : level;
        if (!(of->least_area > 0) && !(of->least_peak > 0)) continue;
        /* A margin below the level: low + (up - low) * weight may come out above both in float. */
        es_drop_small(logits + offset_of(contract, inset, i), (size_t)contract->width,
                      canvas->small, width, height, (float)level, (uint32_t)least_px, (float)least,
                      (float)(level - 1), runs);
    }
}

/* What is known of a class while its mask is made. */
typedef struct marked {
    float level;
    es_box box;      /* output pixels one of whose taps is above the level; empty where none is */
    int32_t held[2]; /* which row of logits each of its lines holds, interpolated across */
} marked;

/* A row of logits interpolated across, between two columns of the frame. */
static const float *line_of(const es_canvas *canvas, const float *logits, size_t stride, int index,
                            int32_t row, marked *of) {
    int slot = row & 1;
    float *line = canvas->lines + (size_t)(2 * index + slot) * (size_t)canvas->max_width;
    if (of->held[slot] == row) return line;
    const float *from = logits + (size_t)row * stride;
    for (int x = of->box.left; x < of->box.right; x++) {
        float low = from[canvas->x_low[x]], up = from[canvas->x_up[x]];
        line[x] = low + (up - low) * canvas->x_weight[x];
    }
    of->held[slot] = row;
    return line;
}

void es_mask_from_logits(es_canvas *canvas, const es_contract *contract, const es_box *inset,
                         const float *logits, int width, int height, uint8_t *mask,
                         size_t mask_stride) {
    int from_width = inset->right - inset->left, from_height = inset->bottom - inset->top;
    size_t stride = (size_t)contract->width;
    marked of[ES_MAX_CLASSES];
    int top = height, bottom = 0;
    for (int y = 0; y < height; y++) memset(mask + (size_t)y * mask_stride, 0, (size_t)width);
    if (canvas->taps_width != width || canvas->taps_from_width != from_width)
        bilinear_taps(from_width, width, canvas->x_low, canvas->x_up, canvas->x_weight);
    if (canvas->taps_height != height || canvas->taps_from_height != from_height)
        bilinear_taps(from_height, height, canvas->y_low, canvas->y_up, canvas->y_weight);
    canvas->taps_width = width;
    canvas->taps_height = height;
    canvas->taps_from_width = from_width;
    canvas->taps_from_height = from_height;
    for (int i = 0; i < contract->classes; i++) {
        es_box found, *box = &of[i].box;
        of[i].level = (float)logit(contract->of[i].threshold);
        of[i].held[0] = of[i].held[1] = -1;
        box->left = box->right = box->top = box->bottom = 0;
        if (!box_above(logits + offset_of(contract, inset, i), stride, from_width, from_height,
                       of[i].level, &found))
            continue;
        /* Outside it nothing is above the level. */
        box->left = search(canvas->x_up, width, found.left);
        box->right = search(canvas->x_low, width, found.right);
        box->top = search(canvas->y_up, height, found.top);
        box->bottom = search(canvas->y_low, height, found.bottom);
        if (box->top < top) top = box->top;
        if (box->bottom > bottom) bottom = box->bottom;
    }
    for (int y = top; y < bottom; y++) {
        uint8_t *out = mask + (size_t)y * mask_stride;
        if (canvas->best != NULL) memset(canvas->best, 0, (size_t)width * sizeof *canvas->best);
        for (int i = 0; i < contract->classes; i++) {
            const es_box *box = &of[i].box;
            if (y < box->top || y >= box->bottom) continue;
            const float *plane = logits + offset_of(contract, inset, i);
            const float *low = line_of(canvas, plane, stride, i, canvas->y_low[y], &of[i]);
            const float *up = line_of(canvas, plane, stride, i, canvas->y_up[y], &of[i]);
            float weight = canvas->y_weight[y], level = of[i].level;
            if (canvas->best == NULL) {
                for (int x = box->left; x < box->right; x++)
                    out[x] = low[x] + (up[x] - low[x]) * weight > level;
                continue;
            }
            for (int x = box->left; x < box->right; x++) {
                float above = low[x] + (up[x] - low[x]) * weight - level;
                if (!(above > canvas->best[x])) continue;
                canvas->best[x] = above;
                out[x] = (uint8_t)(i + 1);
            }
        }
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
