/* Binary PGM and PPM in their one canonical form, see edgeseg.runtime.pgm. */
#include <string.h>

#include "internal.h"

/* Reads 1 to 3 digits without a leading zero, then the separator. */
static bool read_side(const uint8_t *bytes, size_t count, size_t *at, char separator, int *side) {
    size_t first = *at;
    *side = 0;
    while (*at < count && *at - first < 3 && bytes[*at] >= '0' && bytes[*at] <= '9')
        *side = *side * 10 + bytes[(*at)++] - '0';
    if (*at == first || bytes[first] == '0') return false;
    return *at < count && bytes[(*at)++] == (uint8_t)separator;
}

bool es_pgm_read(const uint8_t *bytes, size_t count, es_picture *picture) {
    size_t at = 3;
    if (count < 3 || bytes[0] != 'P' || (bytes[1] != '5' && bytes[1] != '6') || bytes[2] != '\n')
        return false;
    picture->channels = bytes[1] == '5' ? 1 : 3;
    if (!read_side(bytes, count, &at, ' ', &picture->width)) return false;
    if (!read_side(bytes, count, &at, '\n', &picture->height)) return false;
    if (picture->width > ES_PGM_MAX_WIDTH || picture->height > ES_PGM_MAX_HEIGHT) return false;
    if (count - at < 4 || memcmp(bytes + at, "255\n", 4) != 0) return false;
    at += 4;
    picture->pixels = bytes + at;
    return count - at == (size_t)picture->width * (size_t)picture->height * (size_t)picture->channels;
}
