/* What the files of the library share; nothing here is public. */
#ifndef ES_INTERNAL_H
#define ES_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "edgeseg.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- messages and memory (status.c) ----------------------------------------------------------- */

/* Writes a line to message (ES_MESSAGE_BYTES or NULL) and returns status. */
int es_fail(char *message, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Allocates count * size bytes, 64-byte aligned as the engines like it, and adds them to *total.
 * Not zeroed, so that a page that is never used costs nothing. NULL on overflow or where there is no
 * memory. Freed by free. */
void *es_allocate(size_t count, size_t size, size_t *total);

/* --- SHA-256, FIPS 180-4 (sha256.c) ----------------------------------------------------------- */

typedef struct es_sha256 {
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    uint8_t block[64];
} es_sha256;

void es_sha256_begin(es_sha256 *hash);
void es_sha256_add(es_sha256 *hash, const uint8_t *bytes, size_t count);
void es_sha256_end(es_sha256 *hash, char hex[65]);

/* --- JSON (json.c) ---------------------------------------------------------------------------- */

enum es_json_kind { ES_JSON_NULL, ES_JSON_BOOL, ES_JSON_NUMBER, ES_JSON_STRING, ES_JSON_ARRAY,
                    ES_JSON_OBJECT };

/* One value. An object's children alternate: key, value, key, value. Children follow their parent
 * directly; `next` is the index of what follows a value and everything below it. */
typedef struct es_json_node {
    uint8_t kind;
    uint32_t begin, end; /* in the text; of a string without its quotes */
    uint32_t next;
    uint32_t children; /* keys and values both counted */
} es_json_node;

typedef struct es_json {
    const char *text;
    const es_json_node *nodes; /* the root is the first */
} es_json;

#define ES_JSON_DEPTH 32
#define ES_JSON_NONE UINT32_MAX

/* Parses RFC 8259 JSON, strictly: valid UTF-8, nothing behind the value, at most ES_JSON_DEPTH deep,
 * no recursion. Returns the number of nodes, 0 for malformed text; fills nodes as far as capacity
 * goes, so that a first call with capacity 0 counts. */
size_t es_json_parse(const char *text, size_t length, es_json_node *nodes, size_t capacity);

/* Index of the value of a key in an object; ES_JSON_NONE if missing, there twice or no object. */
uint32_t es_json_get(const es_json *json, uint32_t object, const char *key);
/* Whether a string node says the same as a C string. */
bool es_json_is(const es_json *json, uint32_t node, const char *string);
/* Decodes a string node; false if it is no string, does not fit or holds a zero. */
bool es_json_string(const es_json *json, uint32_t node, char *out, size_t capacity);
/* Reads a number node, rounded as Python does, whatever the locale; false if none or not finite. */
bool es_json_number(const es_json *json, uint32_t node, double *out);
/* Reads a number without fraction and exponent in min..max. */
bool es_json_integer(const es_json *json, uint32_t node, int min, int max, int *out);

/* --- PGM and PPM (pgm.c) ---------------------------------------------------------------------- */

typedef struct es_picture {
    const uint8_t *pixels;
    int width, height;
    int channels; /* 1: grey, 3: interleaved RGB */
} es_picture;

#define ES_PGM_MAX_WIDTH 800
#define ES_PGM_MAX_HEIGHT 600

/* Reads the one canonical form of edgeseg.runtime.pgm; pixels point into bytes. */
bool es_pgm_read(const uint8_t *bytes, size_t count, es_picture *picture);

/* --- manifest (manifest.c) -------------------------------------------------------------------- */

#define ES_MAX_NAME 256      /* bytes of a path in a bundle, with its zero */
#define ES_MAX_BOXES 64      /* blanked boxes, corners of a fan */
#define ES_MAX_MODEL_FILES 4 /* of one engine */
#define ES_MAX_VECTORS 64    /* golden frames */

#define ES_MAX_CHANNELS 3
#define ES_MAX_CLASS_NAME 64 /* bytes with its zero */
#define ES_LUMA (-1)

typedef struct es_class {
    char name[ES_MAX_CLASS_NAME];
    double threshold;
    double least_area, least_peak; /* of a lesion: share of the frame, probability; 0: any */
} es_class;

typedef struct es_contract {
    int width, height;        /* px, multiples of 16 */
    int channels, classes;    /* of the network's input and output, 1 at least */
    int part[ES_MAX_CHANNELS]; /* what each channel is of a frame: 0, 1, 2 of RGB, or ES_LUMA */
    double mean[ES_MAX_CHANNELS], std[ES_MAX_CHANNELS];
    bool letterbox;
    int pad; /* grey level around it */
    es_class of[ES_MAX_CLASSES];
} es_contract;

typedef struct es_box {
    int left, top, right, bottom; /* px, right and bottom exclusive */
} es_box;

typedef struct es_layout {
    int width, height; /* 0: the bundle has none */
    es_box crop;
    int blanks, corners;
    es_box blank[ES_MAX_BOXES];
    int fan[ES_MAX_BOXES][2]; /* x, y in px */
} es_layout;

typedef struct es_names {
    int count;
    char name[ES_MAX_VECTORS][ES_MAX_NAME];
} es_names;

typedef struct es_manifest {
    char name[64], target[64], precision[16];
    es_contract contract;
    es_layout layout;
    char engine[32]; /* chosen; "" where none was to be */
    es_names models, frames, masks; /* of the chosen engine */
    double max_flipped;
    unsigned needs;        /* of the CPU: ES_CPU_*, added up */
    char unknown_need[32]; /* the first that is none of them; "" if all are known */
} es_manifest;

/* Reads the manifest. engine: a name, NULL for the first one that is compiled in, or "" for none
 * (es_verify). Any well-formed minor of our major is read. */
int es_manifest_read(const es_json *json, const char *engine, es_manifest *manifest, char *message);

/* --- what the CPU has (cpu.c) ------------------------------------------------------------------- */

enum { ES_CPU_VNNI = 1, ES_CPU_BF16 = 2, ES_CPU_AMX = 4 };

/* The bit of a name in the manifest's `cpu`; 0 for one that is not known. */
unsigned es_cpu_need(const char *name);
/* What a CPU has, of the registers that CPUID leaves (leaf 7: ecx and edx of sub-leaf 0, eax of
 * sub-leaf 1) and of XCR0, the registers that the system saves. */
unsigned es_cpu_read(uint32_t ecx7, uint32_t edx7, uint32_t eax71, uint64_t xcr0);
/* ES_ERR_CPU_FEATURE with a message where something that is needed is not there. */
int es_cpu_lacks(unsigned needs, unsigned has, char *message);
/* The same of a bundle and this CPU. */
int es_cpu_require(const es_manifest *manifest, char *message);

/* --- where the bytes lie (store.c, folder.c, archive.c) ---------------------------------------- */

#define ES_MAX_PLAIN 200 /* bytes of a plain name */

typedef struct es_blob {
    uint8_t *bytes; /* allocated, one zero behind the last */
    size_t count;
} es_blob;

/* A file of a bundle, open. */
typedef struct es_file {
    int descriptor;       /* of itself, or of the archive that it lies in */
    uint64_t start, size; /* of its content there, bytes */
    bool packed;          /* in an archive, which has a CRC-32 of it */
    uint32_t crc;
} es_file;

/* A file in an archive. */
typedef struct es_member {
    char name[ES_MAX_PLAIN + 1];
    uint32_t start, size, crc;
} es_member;

typedef struct es_store es_store;

/* Looks at one file; anything but ES_OK ends the walk and is its result. */
typedef int es_visit(void *context, const char *name, const es_file *file);

typedef struct es_store_kind {
    /* Opens a file beside manifest.json: ES_ERR_BUNDLE_MISSING where there is none. */
    int (*find)(const es_store *store, const char *name, es_file *file, char *message);
    /* Shows every file, each once, open while it is shown. */
    int (*walk)(const es_store *store, es_visit *visit, void *context, char *message);
} es_store_kind;

struct es_store {
    const es_store_kind *kind;
    int descriptor;     /* of the folder or of the archive */
    es_member *members; /* of an archive, sorted by name */
    int count;
};

extern const es_store_kind es_store_folder, es_store_archive;

int es_store_open(const char *path, es_store *store, char *message);
void es_store_close(es_store *store);
/* Reads the directory of an archive of `size` bytes; every byte that is not content is compared. */
int es_archive_read(es_store *store, uint64_t size, const char *path, char *message);

/* Reads bytes at a position of a descriptor; false where there are not as many. */
bool es_read_at(int descriptor, uint64_t position, uint8_t *bytes, size_t count);
/* Reads a file once: its content into blob unless that is NULL, its SHA-256 into digest. */
int es_file_read(const es_file *file, const char *name, es_blob *blob, size_t *total,
                 char digest[65], char *message);
void es_file_close(const es_file *file);

/* Whether a name is plain on every file system and stays in the bundle, as edgeseg.runtime.store. */
bool es_name_is_plain(const char *name, size_t length);
/* Write the message of the refusal and return its status. */
int es_bad_name(char *message, const char *name, size_t length);
int es_changed(char *message, const char *name);
int es_no_memory(char *message, const char *name);

/* --- signature (signature.c, key_openssl.c or key_none.c) --------------------------------------- */

#define ES_SIGNATURE "model.sig"         /* in no list, since it signs the list */
#define ES_MAX_SIGNATURE (1u << 20)      /* bytes */
#define ES_PAYLOAD_TYPE "application/vnd.in-toto+json"

/* model.sig in its one form; points into its text. */
typedef struct es_signature {
    const char *hint; /* 64 digits: SHA-256 of the PEM of the public key */
    const uint8_t *payload, *value; /* the statement that is signed, its ECDSA signature as DER */
    size_t payload_count, value_count;
} es_signature;

/* Reads model.sig, decoding it in place; false for any other form than model-signing 1.1 writes. */
bool es_signature_read(char *text, size_t count, es_signature *signature);
/* Whether a statement has exactly one digest of SHA256SUMS, and that one. */
int es_statement_check(const char *text, size_t count, const char sums[65], char *message);
/* Whether the public key in a PEM file made a signature. Of key_openssl.c or, without it,
 * key_none.c. */
int es_key_check(const char *path, const es_signature *signature, char *message);
/* All of it; sums: SHA-256 of SHA256SUMS, by which every other file is verified next. */
int es_signature_require(const es_store *store, const char *key, const char sums[65],
                         char *message);
int es_not_signed(char *message, const char *why);

/* --- bundle (bundle.c) ------------------------------------------------------------------------ */

#define ES_MAX_MANIFEST (1u << 20)

typedef struct es_bundle {
    es_manifest manifest;
    char sha256[65];
    es_blob models[ES_MAX_MODEL_FILES];
    es_blob frames[ES_MAX_VECTORS], masks[ES_MAX_VECTORS];
    size_t total; /* bytes allocated */
} es_bundle;

/* One line of SHA256SUMS; points into its text. */
typedef struct es_sum {
    char digest[65];
    const char *name;
    bool seen;
} es_sum;

/* Splits SHA256SUMS, strictly: names ascend, none is absolute or climbs. Line ends become zeros.
 * Returns the number of lines or -1; fills sums as far as capacity goes. */
int es_sums_parse(char *text, size_t length, es_sum *sums, size_t capacity);

/* key: PEM file of the public key whose signature is asked for, or NULL. */
int es_bundle_open(const char *path, const char *key, const char *engine, es_bundle *bundle,
                   char *message);
void es_bundle_close(es_bundle *bundle);

/* --- components (lesion.c) -------------------------------------------------------------------- */

typedef struct es_run {
    uint32_t parent, area;
    uint16_t row, start, end; /* px, end exclusive */
    uint16_t left, right, bottom; /* of the component, valid at its root; row is its top */
    bool border;              /* the component touches the mask's border */
    float peak;               /* the highest logit of the component, where it was asked for */
} es_run;

/* Runs that the worst mask of this size has. */
size_t es_max_runs(int width, int height);
void es_fill_holes(uint8_t *mask, int width, int height, es_run *runs);
void es_keep_largest(uint8_t *mask, int width, int height, es_run *runs);
/* Finds the pixels above the level and sets the logits of those components of them to `to` that have
 * fewer pixels than least_px, or whose highest logit lies below least_logit. Rows of logits are
 * stride apart. mask: for as many pixels, overwritten. */
void es_drop_small(float *logits, size_t stride, uint8_t *mask, int width, int height, float level,
                   uint32_t least_px, float least_logit, float to, es_run *runs);

/* --- pictures (image.c), bit for bit as edgeseg.runtime.image with Pillow 13 ------------------- */

typedef struct es_taps { /* along one axis of Pillow's 8-bit resize */
    int32_t *first, *count, *weights; /* ES_TAPS weights for each output pixel, times 2**22 */
} es_taps;

#define ES_TAPS 5 /* a box reduction comes first, so that the ratio is below 2 */

typedef struct es_canvas {
    int network_width, network_height;
    int max_width, max_height;
    es_taps across, down;
    uint8_t *reduced, *between, *small; /* 4 *, 2 * and 1 * the network's area */
    int32_t *x_low, *x_up, *y_low, *y_up;
    float *x_weight, *y_weight;
    float *lines; /* interpolated rows of logits: two of each class, max_width apart */
    float *best;  /* of a row: how far the chosen class is above its level; NULL of one class */
    int taps_width, taps_height; /* the frame that the interpolation taps are of */
    int taps_from_width, taps_from_height; /* and the inset */
} es_canvas;

bool es_canvas_open(es_canvas *canvas, int network_width, int network_height, int classes,
                    int max_width, int max_height, size_t *total);
void es_canvas_close(es_canvas *canvas);

void es_grey_from_rgb(const uint8_t *rgb, int width, int height, size_t stride, uint8_t *grey);
/* Takes the part 0, 1 or 2 of interleaved RGB. */
void es_part_from_rgb(const uint8_t *rgb, int part, int width, int height, size_t stride,
                      uint8_t *grey);
/* Where a frame lies in the network's input; all of it without a letterbox. */
es_box es_inset_of(const es_contract *contract, int width, int height);
/* Resizes grey to the size of the inset: result in canvas->small, its rows without gaps. */
void es_resize_grey(es_canvas *canvas, const uint8_t *grey, int width, int height, size_t stride,
                    const es_box *inset);
/* Makes a channel of the network's input of what was resized. */
void es_normalise(const es_canvas *canvas, const es_contract *contract, const es_box *inset,
                  int channel, float *image);
/* Writes the mask of a region, rows mask_stride bytes apart: 0, or the class from 1 on. */
void es_mask_from_logits(es_canvas *canvas, const es_contract *contract, const es_box *inset,
                         const float *logits, int width, int height, uint8_t *mask,
                         size_t mask_stride);
/* Whether the contract drops what is no lesion. */
bool es_contract_drops(const es_contract *contract);
/* Sets the logits of components below the least lesion of their class below its threshold. runs:
 * es_max_runs of the network's size. Takes canvas->small, which the network's input is no longer in. */
void es_drop_components(es_canvas *canvas, const es_contract *contract, const es_box *inset,
                        float *logits, es_run *runs);
/* Which pixels of the crop count: 1 inside the fan and outside the blanked boxes. Whether any. */
bool es_layout_keep(const es_layout *layout, uint8_t *keep);

/* --- engines (engine_*.c) --------------------------------------------------------------------- */

typedef struct es_engine es_engine; /* each engine's own */

/* What an engine is given to open. */
typedef struct es_engine_job {
    const es_names *names; /* of its files, as in the bundle */
    const es_blob *files;  /* verified; live as long as the engine */
    float *image, *logits; /* [1, channels or classes, height, width]: bound once, for run */
    int channels, classes;
    int width, height;     /* px */
    int threads;           /* >= 1 */
} es_engine_job;

typedef struct es_engine_kind {
    const char *name;
    int (*open)(const es_engine_job *job, es_engine **engine, char *message);
    int (*run)(es_engine *engine, char *message);
    void (*close)(es_engine *engine);
    const char *(*version)(const es_engine *engine);
    bool copies_files; /* so that the files may be freed after open */
} es_engine_kind;

/* NULL if it is not compiled in. */
const es_engine_kind *es_engine_find(const char *name);
extern const es_engine_kind es_engine_openvino, es_engine_openvino_bf16, es_engine_onnxruntime,
    es_engine_tensorrt, es_engine_stub;

/* The one file that ends in suffix, or NULL and a message. */
const es_blob *es_file_with_suffix(const es_engine_job *job, const char *suffix, char *message);

#ifdef __cplusplus
}
#endif
#endif
