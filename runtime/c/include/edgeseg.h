/* edgeseg: a frame of ultrasound in, the mask of the lesions out. C99, Apache-2.0.
 *
 *     es_session *session = NULL;
 *     char message[ES_MESSAGE_BYTES];
 *     int status = es_open("bundle", NULL, &session, message);
 *     if (status == ES_OK) status = es_selftest(session, NULL);
 *     if (status == ES_OK) status = es_infer(session, frame, width, height, stride, mask);
 *     es_close(session);
 *
 * A bundle is a folder written by `edgeseg export`, or the file that `edgeseg bundle pack` made of
 * it. Every byte of it is compared with its hashes before an engine sees one, and an engine gets the
 * bytes that were compared, not the file again. With a key its signature must hold before that.
 *
 * Memory: es_open allocates all that this library ever needs; no other function allocates, but the
 * engine's own library may while it runs (docs/c-runtime.md has the counts). Threads: one session
 * serves one call at a time and answers ES_ERR_BUSY to a second one; different sessions are
 * independent. There are no globals.
 */
#ifndef EDGESEG_H
#define EDGESEG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ES_API __attribute__((visibility("default")))
#else
#define ES_API
#endif

#define ES_VERSION "2.0.0"     /* of this library and its binary interface */
#define ES_SCHEMA_MAJOR 3      /* of the bundles that it opens, the newest: edgeseg.bundle/3.x */
#define ES_SCHEMA_OLDEST 2     /* and the oldest: one grey channel, one class, no letterbox */
#define ES_MAX_CLASSES 16      /* of a network */
#define ES_MESSAGE_BYTES 256   /* of a message with its terminating zero */
#define ES_MAX_SIDE 16384      /* px, of a frame */
#define ES_MAX_PIXELS 67108864 /* of a frame */

/* What a function returns: ES_OK or one of these. Values never change; es_code gives the name that
 * the Python runtime uses for the same thing. */
enum es_status {
    ES_OK = 0,
    ES_ERR_ARGUMENT = -1,        /* NULL, a size or stride out of range, an unknown option */
    ES_ERR_FRAME = -2,           /* a frame larger than at es_open, or not of the layout's size */
    ES_ERR_MEMORY = -3,          /* es_open could not allocate */
    ES_ERR_BUSY = -4,            /* another thread is inside this session */
    ES_ERR_BUNDLE_MISSING = -10, /* no folder or file with manifest.json and SHA256SUMS there */
    ES_ERR_BUNDLE_HASH = -11,    /* a file was changed, added, removed, or cannot be read */
    ES_ERR_BUNDLE_LINK = -12,    /* a link or a device in the bundle */
    ES_ERR_MANIFEST_SIZE = -13,  /* manifest.json or SHA256SUMS is over 1 MiB */
    ES_ERR_MANIFEST_NEWER = -14, /* bundle schema of another major version */
    ES_ERR_MANIFEST_FIELD = -15, /* manifest.json is malformed */
    ES_ERR_PGM = -16,            /* a golden frame or mask is malformed */
    ES_ERR_BUNDLE_NAME = -17,    /* a file's name is not plain, or leads out of the bundle */
    ES_ERR_ARCHIVE_FORM = -18,   /* a packed bundle in another form than `edgeseg bundle pack`'s */
    ES_ERR_ARCHIVE_SIZE = -19,   /* a packed bundle over 1 GiB */
    ES_ERR_ENGINE_UNLISTED = -20, /* the bundle has no model for the engine asked for */
    ES_ERR_ENGINE_MISSING = -21, /* the engine was not compiled into this library */
    ES_ERR_ENGINE_LOAD = -22,    /* the engine refused the model */
    ES_ERR_ENGINE_VERSION = -23, /* an engine library of another version than needed */
    ES_ERR_ENGINE_RUN = -24,     /* the engine failed while it ran */
    ES_ERR_ENGINE_RESULT = -25,  /* the engine answered a number that is not finite */
    ES_ERR_CPU_FEATURE = -26,    /* the CPU does not have what the bundle needs */
    ES_ERR_SELFTEST = -30,       /* golden vectors: another answer than at export, or none there */
    ES_ERR_SIGNATURE_MISSING = -40, /* a key was given, the bundle has no signature */
    ES_ERR_SIGNATURE = -41,      /* by another key, of another bundle, or damaged */
    ES_ERR_KEY_READ = -42,       /* the key is no public key of P-256, P-384 or P-521 as PEM */
    ES_ERR_OPENSSL_MISSING = -43 /* a key was given to a library that was built without OpenSSL */
};

/* Zero or NULL means the default. */
typedef struct es_options {
    const char *engine; /* "openvino", "openvino-bf16", "onnxruntime" or "tensorrt"; NULL: the
                           bundle's first that is compiled in */
    const char *key;    /* PEM file of a public key: the bundle must be signed with its private key.
                           NULL: no signature is asked for, and none is looked at */
    int threads;        /* of the engine on the CPU; 0: every core this process may use */
    int max_width;      /* px, of the frames that will come; 0: 1920 */
    int max_height;     /* px; 0: 1200. A layout in the bundle overrides both */
    int largest_only;   /* 1: keep only the largest 8-connected component of a mask */
    int fill_holes;     /* 1: background that does not touch the frame's border becomes lesion;
                           both are for networks of one class */
} es_options;

/* One open bundle. */
typedef struct es_session es_session;

/* What is open; the strings live as long as the session. */
typedef struct es_facts {
    const char *name, *target, *precision; /* of the network, from the manifest */
    const char *engine, *engine_version;   /* what runs it */
    const char *bundle_sha256;             /* of SHA256SUMS, hence of everything in the bundle */
    int threads;                           /* of the engine */
    int network_width, network_height;     /* px */
    int max_width, max_height;             /* px, of a frame */
    int channels;                          /* that the network takes: 1 or 3 */
    int takes_colour;                      /* 1: es_infer_rgb gives it colours, 0: their luma */
    int classes;                           /* of the network; 1 as a rule */
    const char *class_names[ES_MAX_CLASSES]; /* of label 1 on; 0 is background */
    int golden_frames;                     /* that es_selftest replays */
    size_t bytes;                          /* allocated by this library, the model included */
} es_facts;

/* What the replay of the golden vectors found. */
typedef struct es_selftest_result {
    int frames;                /* replayed */
    int bit_equal;             /* of them: mask equal to the export's, bit for bit */
    int worst_frame;           /* index of the frame with the largest flipped share */
    double worst_flipped;      /* pixels that differ / max(1, lesion px of the export's mask) */
    double max_flipped;        /* largest share that the bundle accepts of this engine */
} es_selftest_result;

/* Verifies a bundle, a folder or a packed file, and opens it.
 *
 * options: NULL for all defaults. *session is set on success only. message: ES_MESSAGE_BYTES bytes
 * for one line on what failed, or NULL. Returns any code but FRAME, BUSY, RUN, RESULT, SELFTEST. */
ES_API int es_open(const char *bundle, const es_options *options, es_session **session,
                   char *message);

/* Compares every byte of a bundle with its hashes and reads its manifest; opens no engine. For a boot
 * loader or before an update is accepted. key: as in es_options; message: as es_open. */
ES_API int es_verify(const char *bundle, const char *key, char *message);

/* Segments a grey frame.
 *
 * frame: height rows of width bytes, stride bytes apart; stride >= width. mask: height * width
 * bytes, row by row without gaps, 1 where lesion and 0 elsewhere; of a network of several classes the
 * number of the pixel's class, es_facts.class_names[number - 1]. mask must not overlap frame.
 * Untouched unless ES_OK is returned. Allocates nothing, see above. */
ES_API int es_infer(es_session *session, const uint8_t *frame, int width, int height, int stride,
                    uint8_t *mask);

/* The same of an interleaved RGB frame; stride >= 3 * width. A network that takes grey gets its luma by
 * ITU-R BT.601, one that takes colour its colours; es_infer gives that three times the same. */
ES_API int es_infer_rgb(es_session *session, const uint8_t *frame, int width, int height,
                        int stride, uint8_t *mask);

/* Replays the bundle's golden vectors, without layout and options, and compares the masks.
 *
 * result: may be NULL. Returns ES_ERR_SELFTEST where a frame's flipped share is over the bundle's
 * limit, or where the bundle has no vectors of this engine. Allocates nothing, see above. */
ES_API int es_selftest(es_session *session, es_selftest_result *result);

/* Tells what is open. Returns ES_OK or ES_ERR_ARGUMENT. */
ES_API int es_info(const es_session *session, es_facts *facts);

/* One line on the last failed es_infer, es_infer_rgb or es_selftest of a session; "" if none did.
 * Not to be called while another thread is inside the session. */
ES_API const char *es_last_message(const es_session *session);

/* Frees everything. NULL is allowed. Not to be called while another thread is in the session. */
ES_API void es_close(es_session *session);

/* "E-BUNDLE-HASH" and so on, stable; "" for a number that is no status. */
ES_API const char *es_code(int status);

/* What a status means, one English sentence. */
ES_API const char *es_strerror(int status);

/* Name of the index-th engine that is compiled in, NULL behind the last. */
ES_API const char *es_engine_name(int index);

#ifdef __cplusplus
}
#endif
#endif
