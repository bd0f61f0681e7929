/* What the C runtime needs of manifest.json, edgeseg.bundle/2.x and 3.x. */
#include <string.h>

#include "internal.h"

static const char newer[] = "bundle schema is %.40s, this library reads edgeseg.bundle/%d.x to "
                            "%d.x; update the library or export the bundle again";

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

static int check_schema(const es_json *json, int *major, char *message) {
    static const char prefix[] = "edgeseg.bundle/";
    char schema[64];
    if (!es_json_string(json, es_json_get(json, 0, "schema"), schema, sizeof schema))
        return malformed(message, "schema");
    const char *rest = schema + sizeof prefix - 1;
    bool named = strncmp(schema, prefix, sizeof prefix - 1) == 0;
    *major = named ? read_version(&rest) : -1;
    if (*major < ES_SCHEMA_OLDEST || *major > ES_SCHEMA_MAJOR || *rest++ != '.' ||
        read_version(&rest) < 0 || *rest != '\0')
        return es_fail(message, ES_ERR_MANIFEST_NEWER, newer, schema, ES_SCHEMA_OLDEST,
                       ES_SCHEMA_MAJOR);
    return ES_OK;
}

/* Fields of a contract as they are read. */
typedef struct reader {
    const es_json *json;
    uint32_t object;
    uint32_t known; /* nodes that were read, keys and values */
    int second;     /* fields that contract 1 has not */
} reader;

/* The node of a field; ES_JSON_NONE where it is missing. */
static uint32_t field(reader *of, const char *key) {
    uint32_t node = es_json_get(of->json, of->object, key);
    if (node != ES_JSON_NONE) of->known += 2;
    return node;
}

/* Reads one number, which is then that of all, or a list with one for each of count. Where there is no
 * such field, all are `missing`, or it is malformed if that is below 0. */
static bool read_each(reader *of, const char *key, int count, double missing, double *out) {
    uint32_t node = field(of, key);
    if (node == ES_JSON_NONE) {
        for (int i = 0; i < count; i++) out[i] = missing;
        return missing >= 0;
    }
    const es_json_node *list = &of->json->nodes[node];
    if (list->kind != ES_JSON_ARRAY) {
        if (!es_json_number(of->json, node, &out[0])) return false;
        for (int i = 1; i < count; i++) out[i] = out[0];
        return true;
    }
    of->second++;
    if (list->children != (uint32_t)count) return false;
    uint32_t each = node + 1;
    for (int i = 0; i < count; i++, each = of->json->nodes[each].next)
        if (!es_json_number(of->json, each, &out[i])) return false;
    return true;
}

/* Reads a word that may be missing: its place among the words, 0 where it is missing, -1 for others. */
static int read_word(reader *of, const char *key, const char *const *words, int count) {
    uint32_t node = field(of, key);
    if (node == ES_JSON_NONE) return 0;
    of->second++;
    for (int i = 0; i < count; i++)
        if (es_json_is(of->json, node, words[i])) return i;
    return -1;
}

static bool is_class_name(const es_contract *contract, int index) {
    const char *name = contract->of[index].name;
    if (*name == '\0' || strcmp(name, "background") == 0) return false;
    for (const char *c = name; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) return false;
    for (int i = 0; i < index; i++)
        if (strcmp(contract->of[i].name, name) == 0) return false;
    return true;
}

static bool read_classes(reader *of, es_contract *contract) {
    uint32_t node = field(of, "classes");
    contract->classes = 1;
    strcpy(contract->of[0].name, "lesion");
    if (node == ES_JSON_NONE) return true;
    of->second++;
    const es_json_node *list = &of->json->nodes[node];
    if (list->kind != ES_JSON_ARRAY || list->children < 1 || list->children > ES_MAX_CLASSES)
        return false;
    contract->classes = (int)list->children;
    uint32_t each = node + 1;
    for (int i = 0; i < contract->classes; i++, each = of->json->nodes[each].next)
        if (!es_json_string(of->json, each, contract->of[i].name, ES_MAX_CLASS_NAME) ||
            !is_class_name(contract, i))
            return false;
    return true;
}

static bool read_points(reader *of, es_contract *contract) {
    double thresholds[ES_MAX_CLASSES], areas[ES_MAX_CLASSES], peaks[ES_MAX_CLASSES];
    int count = contract->classes;
    if (!read_each(of, "threshold", count, -1, thresholds) ||
        !read_each(of, "least_area", count, 0, areas) ||
        !read_each(of, "least_peak", count, 0, peaks))
        return false;
    for (int i = 0; i < count; i++) {
        es_class *each = &contract->of[i];
        each->threshold = thresholds[i];
        each->least_area = areas[i];
        each->least_peak = peaks[i];
        if (!(thresholds[i] > 0 && thresholds[i] < 1 && areas[i] >= 0 && areas[i] < 1)) return false;
        if (!(peaks[i] == 0 || (peaks[i] > thresholds[i] && peaks[i] < 1))) return false;
    }
    return true;
}

static bool read_channels(reader *of, es_contract *contract) {
    static const char *const words[] = {"grey", "grey3", "rgb", "bgr"};
    static const int parts[][ES_MAX_CHANNELS] = {{ES_LUMA, ES_LUMA, ES_LUMA},
                                                 {ES_LUMA, ES_LUMA, ES_LUMA},
                                                 {0, 1, 2},
                                                 {2, 1, 0}};
    int word = read_word(of, "channels", words, 4);
    if (word < 0) return false;
    contract->channels = word == 0 ? 1 : ES_MAX_CHANNELS;
    memcpy(contract->part, parts[word], sizeof contract->part);
    if (!read_each(of, "mean", contract->channels, -1, contract->mean) ||
        !read_each(of, "std", contract->channels, -1, contract->std))
        return false;
    for (int i = 0; i < contract->channels; i++)
        if (!(contract->mean[i] >= 0 && contract->mean[i] <= 1 && contract->std[i] > 0 &&
              contract->std[i] <= 1))
            return false;
    return true;
}

static bool read_contract(const es_json *json, int major, es_contract *contract) {
    static const char *const resizes[] = {"stretch", "letterbox"};
    static const char *const heads[] = {"sigmoid", "softmax"};
    reader of = {json, es_json_get(json, 0, "contract"), 0, 0};
    if (of.object == ES_JSON_NONE) return false;
    int resize = read_word(&of, "resize", resizes, 2);
    if (resize < 0 || read_word(&of, "head", heads, 2) < 0) return false;
    contract->letterbox = resize == 1;
    uint32_t pad = field(&of, "pad");
    if (pad != ES_JSON_NONE) {
        of.second++;
        if (!es_json_integer(json, pad, 0, 255, &contract->pad)) return false;
        if (contract->pad > 0 && !contract->letterbox) return false;
    }
    return es_json_integer(json, field(&of, "width"), 16, 4096, &contract->width) &&
           es_json_integer(json, field(&of, "height"), 16, 4096, &contract->height) &&
           contract->width % 16 == 0 && contract->height % 16 == 0 &&
           read_channels(&of, contract) && read_classes(&of, contract) &&
           read_points(&of, contract) && json->nodes[of.object].children == of.known &&
           (major > 2 || of.second == 0);
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

/* Reads what the CPU must have; a bundle may need nothing, and one of schema 2 does not. */
static bool read_needs(const es_json *json, int major, es_manifest *manifest) {
    uint32_t array = es_json_get(json, 0, "cpu");
    if (array == ES_JSON_NONE) return true;
    if (major == ES_SCHEMA_OLDEST) return false;
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
    int major = 0, status = check_schema(json, &major, message);
    if (status != ES_OK) return status;
    if (!es_json_string(json, es_json_get(json, 0, "name"), manifest->name,
                        sizeof manifest->name) ||
        !es_json_string(json, es_json_get(json, 0, "target"), manifest->target,
                        sizeof manifest->target) ||
        !es_json_string(json, es_json_get(json, 0, "precision"), manifest->precision,
                        sizeof manifest->precision))
        return malformed(message, "name, target or precision");
    if (!read_contract(json, major, &manifest->contract)) return malformed(message, "contract");
    if (!read_layout(json, &manifest->layout)) return malformed(message, "layout");
    if (!read_needs(json, major, manifest)) return malformed(message, "cpu");
    status = choose_engine(json, engine, manifest, message);
    if (status != ES_OK) return status;
    return read_vectors(json, manifest) ? ES_OK : malformed(message, "vectors");
}
