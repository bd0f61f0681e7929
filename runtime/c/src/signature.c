/* model.sig: OpenSSF Model Signing v1 with an elliptic-curve key, as edgeseg.runtime.signature. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* How every model.sig begins, whoever signed. */
#define BEGIN "{\"mediaType\":\"application/vnd.dev.sigstore.bundle.v0.3+json\"," \
              "\"verificationMaterial\":{"

typedef struct reading {
    char *at, *end;
} reading;

int es_not_signed(char *message, const char *why) {
    return es_fail(message, ES_ERR_SIGNATURE,
                   "the signature does not hold for this key (%.100s); use the maker's public key, or "
                   "fetch the bundle again", why);
}

static bool take(reading *r, const char *literal) {
    size_t length = strlen(literal);
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, literal, length) != 0) return false;
    r->at += length;
    return true;
}

static bool take_digits(reading *r, const char **digits) {
    *digits = r->at;
    for (int i = 0; i < 64; i++, r->at++)
        if (r->at == r->end || *r->at == '\0' || strchr("0123456789abcdef", *r->at) == NULL)
            return false;
    return true;
}

static int base64_value(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Reads RFC 4648 base64 up to its quote and decodes it where it lies. Only what encodes to the same
 * text again: padded, and no bits set that say nothing. */
static bool take_base64(reading *r, const uint8_t **bytes, size_t *count) {
    uint8_t *to = (uint8_t *)r->at;
    uint32_t bits = 0;
    size_t digits = 0, padding = 0;
    *bytes = to;
    for (; r->at < r->end && *r->at != '"'; r->at++) {
        int value = base64_value(*r->at);
        if (*r->at == '=') padding++;
        else if (value < 0 || padding > 0) return false;
        else digits++;
        bits = bits << 6 | (value < 0 ? 0 : (uint32_t)value);
        if ((digits + padding) % 4 != 0) continue;
        for (int shift = 16; shift >= 0; shift -= 8) *to++ = (uint8_t)(bits >> shift & 0xff);
        bits = 0;
    }
    if (padding > 2 || (digits + padding) % 4 != 0) return false;
    *count = digits * 3 / 4;
    for (size_t i = 0; i < padding; i++) /* of the last group */
        if (to[-1 - (int)i] != 0) return false;
    return true;
}

bool es_signature_read(char *text, size_t count, es_signature *signature) {
    reading r = {text, text + count};
    return take(&r, BEGIN "\"publicKey\":{\"hint\":\"") && take_digits(&r, &signature->hint) &&
           take(&r, "\"},\"tlogEntries\":[]},\"dsseEnvelope\":{\"payload\":\"") &&
           take_base64(&r, &signature->payload, &signature->payload_count) &&
           take(&r, "\",\"payloadType\":\"" ES_PAYLOAD_TYPE "\",\"signatures\":[{\"sig\":\"") &&
           take_base64(&r, &signature->value, &signature->value_count) &&
           take(&r, "\",\"keyid\":\"\"}]}}") && r.at == r.end;
}

/* Whether a resource is SHA256SUMS; *right: whether it has the digest. */
static bool is_sums(const es_json *json, uint32_t resource, const char sums[65], bool *right) {
    if (!es_json_is(json, es_json_get(json, resource, "name"), "SHA256SUMS")) return false;
    *right = es_json_is(json, es_json_get(json, resource, "algorithm"), "sha256") &&
             es_json_is(json, es_json_get(json, resource, "digest"), sums);
    return true;
}

static bool covers(const es_json *json, const char sums[65]) {
    uint32_t resources = es_json_get(json, es_json_get(json, 0, "predicate"), "resources");
    if (!es_json_is(json, es_json_get(json, 0, "_type"), "https://in-toto.io/Statement/v1") ||
        !es_json_is(json, es_json_get(json, 0, "predicateType"),
                    "https://model_signing/signature/v1.0") ||
        resources == ES_JSON_NONE || json->nodes[resources].kind != ES_JSON_ARRAY)
        return false;
    int found = 0;
    bool right = false;
    for (uint32_t each = resources + 1; each < json->nodes[resources].next;
         each = json->nodes[each].next)
        found += is_sums(json, each, sums, &right);
    return found == 1 && right;
}

int es_statement_check(const char *text, size_t count, const char sums[65], char *message) {
    size_t unused = 0, nodes = es_json_parse(text, count, NULL, 0);
    if (nodes == 0) return es_not_signed(message, "what it signs is no statement");
    es_json_node *parsed = es_allocate(nodes, sizeof *parsed, &unused);
    if (parsed == NULL) return es_no_memory(message, ES_SIGNATURE);
    es_json json = {text, parsed};
    es_json_parse(text, count, parsed, nodes);
    bool covered = covers(&json, sums);
    free(parsed);
    return covered ? ES_OK : es_not_signed(message, "it was made for something else");
}

/* Whether the signer's certificate stands where the key's hash would. */
static bool has_certificate(const es_blob *content) {
    reading r = {(char *)content->bytes, (char *)content->bytes + content->count};
    return take(&r, BEGIN "\"x509CertificateChain\":");
}

/* Verifies the content of model.sig, which is changed. */
static int check(es_blob *content, const char *key, const char sums[65], char *message) {
    es_signature signature;
    if (has_certificate(content))
        return es_fail(message, ES_ERR_SIGNATURE,
                       "the bundle is signed with a certificate, and this library takes bare keys; "
                       "sign a copy of it with `edgeseg bundle sign` and the key alone");
    if (!es_signature_read((char *)content->bytes, content->count, &signature))
        return es_not_signed(message, ES_SIGNATURE " is not in the form of Model Signing 1.1");
    int status = es_key_check(key, &signature, message);
    if (status != ES_OK) return status;
    return es_statement_check((const char *)signature.payload, signature.payload_count, sums,
                              message);
}

int es_signature_require(const es_store *store, const char *key, const char sums[65],
                         char *message) {
    es_file file;
    es_blob content = {NULL, 0};
    char digest[65];
    size_t unused = 0;
    int status = store->kind->find(store, ES_SIGNATURE, &file, message);
    if (status == ES_ERR_BUNDLE_MISSING)
        return es_fail(message, ES_ERR_SIGNATURE_MISSING,
                       "the bundle has no " ES_SIGNATURE ", but a key was given; sign it with "
                       "`edgeseg bundle sign`, or open it without a key");
    if (status != ES_OK) return status;
    status = file.size > ES_MAX_SIGNATURE
                 ? es_not_signed(message, ES_SIGNATURE " is over 1 MiB")
                 : es_file_read(&file, ES_SIGNATURE, &content, &unused, digest, message);
    es_file_close(&file);
    if (status == ES_OK) status = check(&content, key, sums, message);
    free(content.bytes);
    return status;
}
