/* Segments a PGM or PPM frame with a bundle: edgeseg-predict BUNDLE < frame.pgm > mask.pgm
 *
 * The usage below lists the options. Exit code: 0, 2 for the usage, 5 where stdout cannot be written,
 * or the positive value of the status (11 for ES_ERR_BUNDLE_HASH).
 */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <edgeseg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static int complain(int status, const char *message) {
    fprintf(stderr, "%s: %s\n", es_code(status), *message != '\0' ? message : es_strerror(status));
    return -status;
}

/* Reads a number after blanks and comments, '#' to the end of the line; -1 if there is none. */
static int read_number(void) {
    int c = getchar(), number = 0;
    for (; c == '#' || isspace(c); c = getchar())
        if (c == '#')
            while (c != '\n' && c != '\r' && c != EOF) c = getchar();
    if (!isdigit(c)) return -1;
    for (; isdigit(c); c = getchar())
        if (number <= ES_MAX_SIDE) number = 10 * number + c - '0';
    ungetc(c, stdin);
    return number;
}

/* Reads a binary PGM or PPM of maxval 255 from stdin; NULL if there is none. */
static uint8_t *read_frame(int *width, int *height, int *channels) {
    int kind = getchar() == 'P' ? getchar() : 0;
    if (kind != '5' && kind != '6') return NULL;
    *channels = kind == '5' ? 1 : 3;
    *width = read_number();
    *height = read_number();
    if (read_number() != 255) return NULL;
    if (!isspace(getchar())) return NULL; /* there is no pixel */
    if (*width < 1 || *height < 1 || *width > ES_MAX_SIDE || *height > ES_MAX_SIDE) return NULL;
    size_t count = (size_t)*width * (size_t)*height * (size_t)*channels;
    uint8_t *frame = malloc(count);
    if (frame != NULL && fread(frame, 1, count, stdin) == count) return frame;
    free(frame);
    return NULL;
}

static int print_info(const es_session *session) {
    es_facts facts;
    int status = es_info(session, &facts);
    if (status != ES_OK) return complain(status, "");
    printf("%s %s for %s, sha256 %s\n%s %s, %d threads\nnetwork %dx%d, frames up to %dx%d px\n"
           "%d golden frames, %zu bytes\n",
           facts.name, facts.precision, facts.target, facts.bundle_sha256, facts.engine,
           facts.engine_version, facts.threads, facts.network_width, facts.network_height,
           facts.max_width, facts.max_height, facts.golden_frames, facts.bytes);
    if (facts.channels > 1)
        printf("%d channels of %s\n", facts.channels, facts.takes_colour ? "colour" : "grey");
    for (int i = 0; i < facts.classes && facts.classes > 1; i++)
        printf("label %d: %s\n", i + 1, facts.class_names[i]);
    return 0;
}

static int print_selftest(es_session *session) {
    es_selftest_result result;
    int status = es_selftest(session, &result);
    if (status != ES_OK) return complain(status, es_last_message(session));
    printf("%d of %d golden frames bit-equal, worst flipped share %g of %g\n", result.bit_equal,
           result.frames, result.worst_flipped, result.max_flipped);
    return 0;
}

static int infer(es_session *session, const uint8_t *frame, int width, int height, int channels,
                 uint8_t *mask) {
    return channels == 3 ? es_infer_rgb(session, frame, width, height, 3 * width, mask)
                         : es_infer(session, frame, width, height, width, mask);
}

static int predict(es_session *session, const uint8_t *frame, int width, int height, int channels,
                   double opened_ms) {
    es_facts facts;
    size_t count = (size_t)width * (size_t)height;
    uint8_t *mask = malloc(count);
    if (mask == NULL) return complain(ES_ERR_MEMORY, "");
    double begin = now_ms();
    int status = infer(session, frame, width, height, channels, mask);
    double first_ms = now_ms() - begin;
    if (status == ES_OK) {
        begin = now_ms();
        status = infer(session, frame, width, height, channels, mask);
    }
    if (status == ES_OK) {
        fprintf(stderr, "open %.1f ms, first frame %.2f ms, second %.2f ms\n", opened_ms, first_ms,
                now_ms() - begin);
        if (es_info(session, &facts) == ES_OK && facts.classes == 1)
            for (size_t i = 0; i < count; i++) mask[i] = mask[i] ? 255 : 0; /* any viewer shows it */
        int written = printf("P5\n%d %d\n255\n", width, height) > 0 &&
                      fwrite(mask, 1, count, stdout) == count;
        if (fflush(stdout) != 0 || !written) {
            free(mask);
            fputs("E-OUTPUT: the mask cannot be written to stdout\n", stderr);
            return 5;
        }
    }
    free(mask);
    return status == ES_OK ? 0 : complain(status, es_last_message(session));
}

static int is_mode(const char *argument) {
    return strcmp(argument, "--info") == 0 || strcmp(argument, "--verify") == 0 ||
           strcmp(argument, "--selftest") == 0;
}

static int has_value(int i, int count, char **arguments) {
    return i + 1 < count && strncmp(arguments[i + 1], "--", 2) != 0;
}

int main(int count, char **arguments) {
    const char *bundle = NULL, *mode = "";
    int understood = 1;
    es_options options = {0};
    char message[ES_MESSAGE_BYTES];
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--engine") == 0 && has_value(i, count, arguments))
            options.engine = arguments[++i];
        else if (strcmp(arguments[i], "--key") == 0 && has_value(i, count, arguments))
            options.key = arguments[++i];
        else if (strcmp(arguments[i], "--threads") == 0 && has_value(i, count, arguments))
            options.threads = atoi(arguments[++i]);
        else if (strcmp(arguments[i], "--largest-only") == 0) options.largest_only = 1;
        else if (strcmp(arguments[i], "--fill-holes") == 0) options.fill_holes = 1;
        else if (is_mode(arguments[i])) mode = arguments[i];
        else if (strncmp(arguments[i], "--", 2) != 0 && bundle == NULL) bundle = arguments[i];
        else understood = 0; /* an unknown option, one without its value, a second bundle */
    }
    if (bundle == NULL || !understood) {
        fputs("usage: edgeseg-predict BUNDLE [--key PUBLIC.pem] [--engine NAME] [--threads N]\n"
              "       [--largest-only] [--fill-holes] [--info | --verify | --selftest]\n"
              "       < frame.pgm > mask.pgm\n",
              stderr);
        return 2;
    }
    if (strcmp(mode, "--verify") == 0) {
        int status = es_verify(bundle, options.key, message);
        return status == ES_OK ? 0 : complain(status, message);
    }
    int width = 0, height = 0, channels = 0;
    uint8_t *frame = *mode == '\0' ? read_frame(&width, &height, &channels) : NULL;
    if (*mode == '\0' && frame == NULL)
        return complain(ES_ERR_ARGUMENT,
                        "stdin holds no whole PGM or PPM of maxval 255 (P5, P6); convert the frame to one");
    options.max_width = width;
    options.max_height = height;
    es_session *session = NULL;
    double begin = now_ms();
    int status = es_open(bundle, &options, &session, message);
    double opened_ms = now_ms() - begin;
    int result = 0;
    if (status != ES_OK) result = complain(status, message);
    else if (strcmp(mode, "--info") == 0) result = print_info(session);
    else if (strcmp(mode, "--selftest") == 0) result = print_selftest(session);
    else result = predict(session, frame, width, height, channels, opened_ms);
    es_close(session);
    free(frame);
    if (result == 0 && (fflush(stdout) != 0 || ferror(stdout))) {
        fputs("E-OUTPUT: stdout cannot be written\n", stderr);
        return 5;
    }
    return result;
}
