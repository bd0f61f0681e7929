/* A strict JSON reader over a flat array of nodes: no recursion, no allocation. */
#define _POSIX_C_SOURCE 200809L
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

typedef struct parser {
    const char *text;
    size_t length, at;
    es_json_node *nodes;
    size_t capacity, count;
} parser;

static int peek(const parser *p) {
    return p->at < p->length ? (unsigned char)p->text[p->at] : -1;
}

static bool take(parser *p, char wanted) {
    if (peek(p) != (unsigned char)wanted) return false;
    p->at++;
    return true;
}

static void skip_blanks(parser *p) {
    while (peek(p) == ' ' || peek(p) == '\t' || peek(p) == '\n' || peek(p) == '\r') p->at++;
}

static size_t add_node(parser *p, enum es_json_kind kind, size_t begin) {
    if (p->count < p->capacity) {
        es_json_node node = {(uint8_t)kind, (uint32_t)begin, (uint32_t)begin, 0, 0};
        p->nodes[p->count] = node;
    }
    return p->count++;
}

static void end_node(parser *p, size_t node, size_t end) {
    if (node >= p->capacity) return;
    p->nodes[node].end = (uint32_t)end;
    p->nodes[node].next = (uint32_t)p->count;
}

static int hex_digit(int c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Reads four hexadecimal digits at text; -1 where they are none. */
static int32_t hex_unit(const char *text, size_t length) {
    int32_t unit = 0;
    if (length < 4) return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit((unsigned char)text[i]);
        if (digit < 0) return -1;
        unit = unit * 16 + digit;
    }
    return unit;
}

/* Length of the well-formed UTF-8 character at text (RFC 3629), 0 where there is none. */
static size_t utf8_length(const unsigned char *text, size_t length) {
    static const struct { unsigned char first, last, low, high; size_t length; } forms[] = {
        {0x00, 0x7f, 0x80, 0xbf, 1}, {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
        {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
        {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (text[0] < forms[i].first || text[0] > forms[i].last) continue;
        if (length < forms[i].length) return 0;
        for (size_t k = 1; k < forms[i].length; k++) {
            unsigned char low = k == 1 ? forms[i].low : 0x80, high = k == 1 ? forms[i].high : 0xbf;
            if (text[k] < low || text[k] > high) return 0;
        }
        return forms[i].length;
    }
    return 0;
}

/* Reads the escape behind a backslash at text into *point; returns its length or 0. */
static size_t escape_length(const char *text, size_t length, uint32_t *point) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (length == 0) return 0;
    const char *name = text[0] == '\0' ? NULL : strchr(names, text[0]);
    if (name != NULL) {
        *point = (unsigned char)values[name - names];
        return 1;
    }
    int32_t high = text[0] == 'u' ? hex_unit(text + 1, length - 1) : -1;
    if (high < 0 || (high >= 0xdc00 && high <= 0xdfff)) return 0;
    *point = (uint32_t)high;
    if (high < 0xd800 || high > 0xdfff) return 5;
    if (length < 11 || text[5] != '\\' || text[6] != 'u') return 0; /* half of a pair */
    int32_t low = hex_unit(text + 7, length - 7);
    if (low < 0xdc00 || low > 0xdfff) return 0;
    *point = 0x10000u + ((uint32_t)(high - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
    return 11;
}

static bool parse_string(parser *p) {
    if (!take(p, '"')) return false;
    size_t node = add_node(p, ES_JSON_STRING, p->at);
    while (peek(p) != '"') {
        uint32_t point;
        size_t step;
        if (peek(p) < 0x20) return false; /* a control character, or the end of the text */
        if (take(p, '\\'))
            step = escape_length(p->text + p->at, p->length - p->at, &point);
        else
            step = utf8_length((const unsigned char *)p->text + p->at, p->length - p->at);
        if (step == 0) return false;
        p->at += step;
    }
    end_node(p, node, p->at++);
    return true;
}

static bool take_digits(parser *p) {
    size_t first = p->at;
    while (peek(p) >= '0' && peek(p) <= '9') p->at++;
    return p->at > first;
}

static bool parse_number(parser *p) {
    size_t node = add_node(p, ES_JSON_NUMBER, p->at);
    take(p, '-');
    if (!take(p, '0') && !take_digits(p)) return false;
    if (take(p, '.') && !take_digits(p)) return false;
    if (take(p, 'e') || take(p, 'E')) {
        if (!take(p, '+')) take(p, '-');
        if (!take_digits(p)) return false;
    }
    end_node(p, node, p->at);
    return true;
}

static bool parse_word(parser *p, const char *word, enum es_json_kind kind) {
    size_t length = strlen(word), node = add_node(p, kind, p->at);
    if (p->length - p->at < length || memcmp(p->text + p->at, word, length) != 0) return false;
    p->at += length;
    end_node(p, node, p->at);
    return true;
}

static bool parse_scalar(parser *p) {
    switch (peek(p)) {
        case '"': return parse_string(p);
        case 't': return parse_word(p, "true", ES_JSON_BOOL);
        case 'f': return parse_word(p, "false", ES_JSON_BOOL);
        case 'n': return parse_word(p, "null", ES_JSON_NULL);
        default: return parse_number(p);
    }
}

/* Reads an object's key and its colon. */
static bool parse_key(parser *p) {
    skip_blanks(p);
    if (!parse_string(p)) return false;
    skip_blanks(p);
    return take(p, ':');
}

typedef struct level { /* an array or object that is open */
    size_t node;
    uint32_t children;
    bool object;
} level;

static bool close_level(parser *p, const level *top) {
    if (!take(p, top->object ? '}' : ']')) return false;
    if (top->node < p->capacity) p->nodes[top->node].children = top->children;
    end_node(p, top->node, p->at);
    return true;
}

size_t es_json_parse(const char *text, size_t length, es_json_node *nodes, size_t capacity) {
    parser p = {text, length, 0, nodes, capacity, 0};
    level levels[ES_JSON_DEPTH];
    int depth = 0;
    if (length > UINT32_MAX / 2) return 0;
    for (;;) { /* one value a turn */
        bool complete = true;
        skip_blanks(&p);
        if (peek(&p) == '{' || peek(&p) == '[') {
            if (depth == ES_JSON_DEPTH) return 0;
            level *top = &levels[depth++];
            top->object = peek(&p) == '{';
            top->children = 0;
            top->node = add_node(&p, top->object ? ES_JSON_OBJECT : ES_JSON_ARRAY, p.at++);
            skip_blanks(&p);
            if (close_level(&p, top)) {
                depth--;
            } else {
                if (top->object && !parse_key(&p)) return 0;
                complete = false;
            }
        } else if (!parse_scalar(&p)) {
            return 0;
        }
        while (complete && depth > 0) { /* what follows a value inside the open levels */
            level *top = &levels[depth - 1];
            top->children += top->object ? 2 : 1;
            skip_blanks(&p);
            if (take(&p, ',')) {
                if (top->object && !parse_key(&p)) return 0;
                complete = false;
            } else if (close_level(&p, top)) {
                depth--;
            } else {
                return 0;
            }
        }
        if (complete) break;
    }
    skip_blanks(&p);
    return p.at == length ? p.count : 0;
}

/* Writes a code point as UTF-8 and returns its length. */
static size_t utf8_write(uint32_t point, char out[4]) {
    size_t length = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    static const uint32_t marks[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length - 1; i > 0; i--, point >>= 6) out[i] = (char)(0x80 | (point & 0x3f));
    out[0] = (char)(marks[length] | point);
    return length;
}

/* Reads the next character of a string node at *at as UTF-8 and returns its length. */
static size_t next_character(const es_json *json, const es_json_node *node, size_t *at,
                             char out[4]) {
    const char *text = json->text + *at;
    if (*text != '\\') {
        out[0] = *text;
        (*at)++;
        return 1;
    }
    uint32_t point = 0;
    *at += 1 + escape_length(text + 1, node->end - *at - 1, &point);
    return utf8_write(point, out);
}

bool es_json_string(const es_json *json, uint32_t index, char *out, size_t capacity) {
    if (index == ES_JSON_NONE || json->nodes[index].kind != ES_JSON_STRING) return false;
    const es_json_node *node = &json->nodes[index];
    size_t used = 0;
    for (size_t at = node->begin; at < node->end;) {
        char character[4];
        size_t length = next_character(json, node, &at, character);
        if (character[0] == '\0' || used + length >= capacity) return false;
        memcpy(out + used, character, length);
        used += length;
    }
    out[used] = '\0';
    return true;
}

bool es_json_is(const es_json *json, uint32_t index, const char *string) {
    if (index == ES_JSON_NONE || json->nodes[index].kind != ES_JSON_STRING) return false;
    const es_json_node *node = &json->nodes[index];
    size_t used = 0, wanted = strlen(string);
    for (size_t at = node->begin; at < node->end;) {
        char character[4];
        size_t length = next_character(json, node, &at, character);
        if (used + length > wanted || memcmp(string + used, character, length) != 0) return false;
        used += length;
    }
    return used == wanted;
}

uint32_t es_json_get(const es_json *json, uint32_t object, const char *key) {
    if (object == ES_JSON_NONE || json->nodes[object].kind != ES_JSON_OBJECT) return ES_JSON_NONE;
    uint32_t found = ES_JSON_NONE;
    for (uint32_t each = object + 1; each < json->nodes[object].next;) {
        uint32_t value = each + 1; /* a key has no children */
        if (es_json_is(json, each, key)) {
            if (found != ES_JSON_NONE) return ES_JSON_NONE;
            found = value;
        }
        each = json->nodes[value].next;
    }
    return found;
}

bool es_json_number(const es_json *json, uint32_t index, double *out) {
    char text[64];
    if (index == ES_JSON_NONE || json->nodes[index].kind != ES_JSON_NUMBER) return false;
    size_t length = json->nodes[index].end - json->nodes[index].begin;
    if (length >= sizeof text) return false; /* a double needs 25 */
    memcpy(text, json->text + json->nodes[index].begin, length);
    text[length] = '\0';
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (plain == (locale_t)0) return false;
    locale_t before = uselocale(plain);
    *out = strtod(text, NULL);
    uselocale(before);
    freelocale(plain);
    return isfinite(*out);
}

bool es_json_integer(const es_json *json, uint32_t index, int min, int max, int *out) {
    double value;
    if (!es_json_number(json, index, &value)) return false;
    for (size_t at = json->nodes[index].begin; at < json->nodes[index].end; at++)
        if (json->text[at] != '-' && !(json->text[at] >= '0' && json->text[at] <= '9')) return false;
    if (value < min || value > max) return false;
    *out = (int)value;
    return true;
}
