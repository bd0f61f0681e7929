/* ECDSA by OpenSSL's libcrypto, with what 1.1.1 and 3.x have in common. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "internal.h"

enum { MAX_KEY = 1 << 16, MAX_DER = 158 };

/* How a SubjectPublicKeyInfo (RFC 5480) of each curve begins, up to its point, which is not
 * compressed; and the hash that model-signing takes for the curve. */
static const struct {
    size_t bytes, begin_bytes;
    uint8_t begin[27];
    const EVP_MD *(*hash)(void);
} curves[] = {
    {91, 27, /* P-256 */
     {0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
      0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04},
     EVP_sha256},
    {120, 24, /* P-384 */
     {0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
      0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04},
     EVP_sha384},
    {MAX_DER, 26, /* P-521 */
     {0x30, 0x81, 0x9b, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
      0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23, 0x03, 0x81, 0x86, 0x00, 0x04},
     EVP_sha512}};

static int bad_key(char *message, const char *path, const char *why) {
    return es_fail(message, ES_ERR_KEY_READ,
                   "%.80s is no public key of P-256, P-384 or P-521 as plain PEM (%.50s); make one "
                   "with openssl, see docs/bundle.md", path, why);
}

/* Reads at most MAX_KEY bytes and a zero behind them; -1 if there are more, or on an error. */
static int read_pem(const char *path, char *text) {
    size_t used = 0;
    ssize_t part = 1;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    while (used <= MAX_KEY && part != 0) {
        part = read(file, text + used, MAX_KEY + 1 - used);
        if (part < 0 && errno == EINTR) continue;
        if (part < 0) break;
        used += (size_t)part;
    }
    close(file);
    if (part < 0 || used > MAX_KEY) return -1;
    text[used] = '\0';
    return (int)used;
}

/* Nobody is asked for a password. */
static int no_password(char *buffer, int size, int writing, void *context) {
    (void)buffer;
    (void)size;
    (void)writing;
    (void)context;
    return -1;
}

static EVP_PKEY *key_from_pem(const char *text, int count) {
    BIO *bio = BIO_new_mem_buf(text, count);
    if (bio == NULL) return NULL;
    EVP_PKEY *key = PEM_read_bio_PUBKEY(bio, NULL, no_password, NULL);
    BIO_free(bio);
    return key;
}

/* The hash that a key of one of the curves goes with; NULL for any other key. */
static const EVP_MD *hash_for(EVP_PKEY *key) {
    uint8_t der[MAX_DER], *end = der;
    int count = i2d_PUBKEY(key, NULL);
    if (count < 0 || count > MAX_DER || i2d_PUBKEY(key, &end) != count) return NULL;
    for (size_t i = 0; i < sizeof curves / sizeof *curves; i++)
        if ((size_t)count == curves[i].bytes &&
            memcmp(der, curves[i].begin, curves[i].begin_bytes) == 0)
            return curves[i].hash();
    return NULL;
}

/* Whether a signature names a key: SHA-256 of its PEM. */
static bool is_hinted(EVP_PKEY *key, const es_signature *signature) {
    char *text, digest[65];
    BIO *bio = BIO_new(BIO_s_mem());
    bool written = bio != NULL && PEM_write_bio_PUBKEY(bio, key) == 1;
    if (written) {
        es_sha256 hash;
        long count = BIO_get_mem_data(bio, &text);
        es_sha256_begin(&hash);
        es_sha256_add(&hash, (const uint8_t *)text, (size_t)count);
        es_sha256_end(&hash, digest);
    }
    BIO_free(bio);
    return written && memcmp(digest, signature->hint, 64) == 0;
}

/* Whether a key made a signature over DSSE's encoding of the payload. */
static bool has_signed(EVP_PKEY *key, const EVP_MD *hash, const es_signature *signature) {
    char head[80];
    int count = snprintf(head, sizeof head, "DSSEv1 %zu " ES_PAYLOAD_TYPE " %zu ",
                         sizeof ES_PAYLOAD_TYPE - 1, signature->payload_count);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool holds =
        context != NULL && EVP_DigestVerifyInit(context, NULL, hash, NULL, key) == 1 &&
        EVP_DigestVerifyUpdate(context, head, (size_t)count) == 1 &&
        EVP_DigestVerifyUpdate(context, signature->payload, signature->payload_count) == 1 &&
        EVP_DigestVerifyFinal(context, signature->value, signature->value_count) == 1;
    EVP_MD_CTX_free(context);
    return holds;
}

static int check_with(EVP_PKEY *key, const char *path, const es_signature *signature,
                      char *message) {
    const EVP_MD *hash = hash_for(key);
    if (hash == NULL) return bad_key(message, path, "of another kind, or its point is compressed");
    return is_hinted(key, signature) && has_signed(key, hash, signature)
               ? ES_OK
               : es_not_signed(message, "it was made by another key, or was changed");
}

int es_key_check(const char *path, const es_signature *signature, char *message) {
    size_t unused = 0;
    char *text = es_allocate(MAX_KEY + 2, 1, &unused);
    if (text == NULL) return es_no_memory(message, "the key");
    ERR_set_mark(); /* the caller's own errors of OpenSSL stay as they are */
    int status, count = read_pem(path, text);
    EVP_PKEY *key = count < 0 ? NULL : key_from_pem(text, count);
    if (key != NULL) status = check_with(key, path, signature, message);
    else if (count < 0) status = bad_key(message, path, "it cannot be read");
    else if (strstr(text, "-----BEGIN CERTIFICATE-----") != NULL)
        status = bad_key(message, path, "a certificate: give the key in it");
    else status = bad_key(message, path, "no public key in it");
    EVP_PKEY_free(key);
    ERR_pop_to_mark();
    free(text);
    return status;
}
