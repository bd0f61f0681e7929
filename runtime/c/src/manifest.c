/* What the C runtime needs of manifest.json, edgeseg.bundle/2.x. */
#include <string.h>

#include "internal.h"

static const char newer[] = "bundle schema is %.40s, this library reads edgeseg.bundle/%d.x; "
                            "update the library or export the bundle again";

static int malformed(char *message, const char *field) {
    return es_fail(message, ES_ERR_MANIFEST_FIELD,
                   "manifest.json is malformed (%s); export the bundle again", field);
}

/* Reads digits without a leading zero at *text; -1 where there are none or too many. */
static int read_version(const char **text) {
    const char *first = *text;
    int value = 0;
    for (; **text >= '0' && **text <= '9' && *text - first < 6; (*text)++)
        value = value * 10 + **text - '0';
    return *text == first || (*first == '0' && *text - first > 1) ? -1 : value;
}

static int check_schema(const es_json *json, char *message) {
    static const char prefix[] = "edgeseg.bundle/";
    char schema[64];
    if (!es_json_string(json, es_json_get(json, 0, "schema"), schema, sizeof schema))
        return malformed(message, "schema");
    const char *rest = schema + sizeof prefix - 1;
    if (strncmp(schema, prefix, sizeof prefix - 1) != 0 || read_version(&rest) != ES_SCHEMA_MAJOR ||
        *rest++ != '.' || read_version(&rest) < 0 || *rest != '\0')
        return es_fail(message, ES_ERR_MANIFEST_NEWER, newer, schema, ES_SCHEMA_MAJOR);
    return ES_OK;
}

/* Reads a number that may be missing, which leaves *out as it is; *known counts its nodes. */
static bool read_optional(const es_json *json, uint32_t object, const char *key, double *out,
                          uint32_t *known) {
    uint32_t node = es_json_get(json, object, key);
    if (node == ES_JSON_NONE) return true;
    *known += 2;
    return es_json_number(json, node, out);
}

static bool read_contract(const es_json *json, es_contract *contract) {
    uint32_t object = es_json_get(json, 0, "contract"), known = 10;
    if (object == ES_JSON_NONE ||
        !read_optional(json, object, "least_area", &contract->least_area, &known) ||
        !read_optional(json, object, "least_peak", &contract->least_peak, &known) ||
        json->nodes[object].children != known)
        return false;
    return es_json_integer(json, es_json_get(json, object, "width"), 16, 4096, &contract->width) &&
           es_json_integer(json, es_json_get(json, object, "height"), 16, 4096,
                           &contract->height) &&
           contract->width % 16 == 0 && contract->height % 16 == 0 &&
           es_json_number(json, es_json_get(json, object, "mean"), &contract->mean) &&
           es_json_number(json, es_json_get(json, object, "std"), &contract->std) &&
           es_json_number(json, es_json_get(json, object, "threshold"), &contract->threshold) &&
           contract->mean >= 0 && contract->mean <= 1 && contract->std > 0 &&
           contract->std <= 1 && contract->threshold > 0 && contract->threshold < 1 &&
           contract->least_area >= 0 && contract->least_area < 1 &&
           (contract->least_peak == 0 ||
            (contract->least_peak > contract->threshold && contract->least_peak < 1));
}

/* Reads an array of whole numbers in 0..ES_MAX_SIDE. */
static bool read_integers(const es_json *json, uint32_t array, int *out, uint32_t count) {
    if (array == ES_JSON_NONE || json->nodes[array].kind != ES_JSON_ARRAY ||
        json->nodes[array].children != count)
        return false;
    uint32_t each = array + 1;
    for (uint32_t i = 0; i < count; i++, each = json->nodes[each].next)
        if (!es_json_integer(json, each, 0, ES_MAX_SIDE, &out[i])) return false;
    return true;
}

static bool read_box(const es_json *json, uint32_t array, const es_layout *layout, es_box *box) {
    int sides[4];
    if (!read_integers(json, array, sides, 4)) return false;
    box->left = sides[0];
    box->top = sides[1];
    box->right = sides[2];
    box->bottom = sides[3];
    return box->left < box->right && box->top < box->bottom && box->right <= layout->width &&
           box->bottom <= layout->height;
}

/* The number of elements of an optional array, -1 if it is none or too long. */
static int count_of(const es_json *json, uint32_t array) {
    if (array == ES_JSON_NONE) return 0;
    const es_json_node *node = &json->nodes[array];
    return node->kind == ES_JSON_ARRAY && node->children <= ES_MAX_BOXES ? (int)node->children : -1;
}

static bool read_layout(const es_json *json, es_layout *layout) {
    uint32_t object = es_json_get(json, 0, "layout");
    if (object == ES_JSON_NONE) return true; /* an older minor */
    if (json->nodes[object].kind != ES_JSON_OBJECT) return false;
    if (json->nodes[object].children == 0) return true;
    if (!es_json_integer(json, es_json_get(json, object, "width"), 1, ES_MAX_SIDE,
                         &layout->width) ||
        !es_json_integer(json, es_json_get(json, object, "height"), 1, ES_MAX_SIDE,
                         &layout->height) ||
        !read_box(json, es_json_get(json, object, "crop"), layout, &layout->crop))
        return false;
    uint32_t blank = es_json_get(json, object, "blank"), fan = es_json_get(json, object, "fan");
    layout->blanks = count_of(json, blank);
    layout->corners = count_of(json, fan);
    if (layout->blanks < 0 || layout->corners < 0) return false;
    if (layout->corners == 1 || layout->corners == 2) return false;
    uint32_t each = blank + 1;
    for (int i = 0; i < layout->blanks; i++, each = json->nodes[each].next)
        if (!read_box(json, each, layout, &layout->blank[i])) return false;
    each = fan + 1;
    for (int i = 0; i < layout->corners; i++, each = json->nodes[each].next)
        if (!read_integers(json, each, layout->fan[i], 2) ||
            layout->fan[i][0] > layout->width || layout->fan[i][1] > layout->height)
            return false;
    uint32_t known = 6u + (blank != ES_JSON_NONE ? 2u : 0u) + (fan != ES_JSON_NONE ? 2u : 0u);
    return json->nodes[object].children == known;
}

static bool read_names(const es_json *json, uint32_t array, int max, es_names *names) {
    if (array == ES_JSON_NONE || json->nodes[array].kind != ES_JSON_ARRAY ||
        json->nodes[array].children > (uint32_t)max)
        return false;
    uint32_t each = array + 1;
    for (names->count = 0; names->count < (int)json->nodes[array].children; names->count++) {
        if (!es_json_string(json, each, names->name[names->count], ES_MAX_NAME)) return false;
        each = json->nodes[each].next;
    }
    return true;
}

/* Reads what the CPU must have; a bundle may need nothing. */
static bool read_needs(const es_json *json, es_manifest *manifest) {
    uint32_t array = es_json_get(json, 0, "cpu");
    if (array == ES_JSON_NONE) return true;
    if (json->nodes[array].kind != ES_JSON_ARRAY) return false;
    uint32_t each = array + 1;
    for (uint32_t i = 0; i < json->nodes[array].children; i++, each = json->nodes[each].next) {
        char name[sizeof manifest->unknown_need];
        if (!es_json_string(json, each, name, sizeof name)) return false;
        unsigned bit = es_cpu_need(name);
        if (bit == 0 && *manifest->unknown_need == '\0')
            memcpy(manifest->unknown_need, name, sizeof name);
        manifest->needs |= bit;
    }
    return true;
}

/* Puts the engine's name and its files into the manifest. */
static int choose_engine(const es_json *json, const char *wanted, es_manifest *manifest,
                         char *message) {
    uint32_t models = es_json_get(json, 0, "models"), files = ES_JSON_NONE;
    if (models == ES_JSON_NONE || json->nodes[models].kind != ES_JSON_OBJECT)
        return malformed(message, "models");
    if (wanted != NULL && *wanted == '\0') return ES_OK;
    for (uint32_t each = models + 1; each < json->nodes[models].next && files == ES_JSON_NONE;
         each = json->nodes[each + 1].next) {
        if (!es_json_string(json, each, manifest->engine, sizeof manifest->engine)) continue;
        if (wanted == NULL ? es_engine_find(manifest->engine) != NULL
                           : strcmp(wanted, manifest->engine) == 0)
            files = es_json_get(json, models, manifest->engine);
    }
    if (files == ES_JSON_NONE && wanted == NULL)
        return es_fail(message, ES_ERR_ENGINE_MISSING,
                       "no engine of the bundle is compiled in; build with another engine");
    if (files == ES_JSON_NONE)
        return es_fail(message, ES_ERR_ENGINE_UNLISTED,
                       "the bundle has no model for '%.40s'; ask for one that it has", wanted);
    if (es_engine_find(manifest->engine) == NULL)
        return es_fail(message, ES_ERR_ENGINE_MISSING,
                       "engine '%s' is not compiled in; build the library with it",
                       manifest->engine);
    return read_names(json, files, ES_MAX_MODEL_FILES, &manifest->models)
               ? ES_OK
               : malformed(message, "models");
}

/* Reads the golden vectors of the chosen engine; a bundle may have none. */
static bool read_vectors(const es_json *json, es_manifest *manifest) {
    uint32_t vectors = es_json_get(json, 0, "vectors");
    if (vectors == ES_JSON_NONE || json->nodes[vectors].children == 0) return true;
    uint32_t masks = es_json_get(json, vectors, "masks");
    uint32_t own = es_json_get(json, masks, manifest->engine);
    if (masks == ES_JSON_NONE) return false;
    if (own == ES_JSON_NONE) return true;
    return read_names(json, es_json_get(json, vectors, "frames"), ES_MAX_VECTORS,
                      &manifest->frames) &&
           read_names(json, own, ES_MAX_VECTORS, &manifest->masks) &&
           manifest->frames.count == manifest->masks.count &&
           es_json_number(json,
                          es_json_get(json, es_json_get(json, vectors, "max_flipped"),
                                      manifest->engine),
                          &manifest->max_flipped) &&
           manifest->max_flipped >= 0 && manifest->max_flipped <= 1;
}

int es_manifest_read(const es_json *json, const char *engine, es_manifest *manifest,
                     char *message) {
    memset(manifest, 0, sizeof *manifest);
    int status = check_schema(json, message);
    if (status != ES_OK) return status;
    if (!es_json_string(json, es_json_get(json, 0, "name"), manifest->name,
                        sizeof manifest->name) ||
        !es_json_string(json, es_json_get(json, 0, "target"), manifest->target,
                        sizeof manifest->target) ||
        !es_json_string(json, es_json_get(json, 0, "precision"), manifest->precision,
                        sizeof manifest->precision))
        return malformed(message, "name, target or precision");
    if (!read_contract(json, &manifest->contract)) return malformed(message, "contract");
    if (!read_layout(json, &manifest->layout)) return malformed(message, "layout");
    if (!read_needs(json, manifest)) return malformed(message, "cpu");
    status = choose_engine(json, engine, manifest, message);
    if (status != ES_OK) return status;
    return read_vectors(json, manifest) ? ES_OK : malformed(message, "vectors");
}
