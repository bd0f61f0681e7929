/* What of the library can be told without Python and an engine; also run under valgrind and on
 * aarch64. Prints the first thing that is wrong and returns 1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define CHECK(what)                                             \
    do {                                                        \
        if (!(what)) {                                          \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #what);   \
            return 1;                                           \
        }                                                       \
    } while (0)

/* The examples of FIPS 180-4 (NIST's SHA256.pdf) and the million of a's of FIPS 180-2. */
static int check_sha256(void) {
    static const struct { const char *text; size_t times; const char *digest; } cases[] = {
        {"", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqr"
         "lmnopqrsmnopqrstnopqrstu", 1,
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
        {"a", 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
        {"aaaaaaaaaa", 100000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        es_sha256 hash;
        char digest[65];
        es_sha256_begin(&hash);
        for (size_t k = 0; k < cases[i].times; k++)
            es_sha256_add(&hash, (const uint8_t *)cases[i].text, strlen(cases[i].text));
        es_sha256_end(&hash, digest);
        CHECK(strcmp(digest, cases[i].digest) == 0);
    }
    return 0;
}

static size_t parse(const char *text) { return es_json_parse(text, strlen(text), NULL, 0); }

static int check_json(void) {
    static const char *good[] = {"1", " [1,2 , 3]\n", "{\"a\":[{}],\"b\":null}", "-0.5e-3",
                                 "\"\\u00e9\\ud83d\\ude00\\n\"", "\"\xc3\xa9\"", "[[[[]]]]"};
    static const char *bad[] = {"", "[1,]", "{\"a\":1,}", "01", "1.", "+1", "nan", "NaN", "[1 2]",
                                "{a:1}", "\"\\x\"", "\"\\ud83d\"", "\"\\udc00\"", "\"\t\"", "1 1",
                                "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xff\"", "[", "\"", "{\"a\"}",
                                "tru", "--1", "1e", "]", "{\"a\":1]", "\"\xf4\x90\x80\x80\""};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK(parse(good[i]) > 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(parse(bad[i]) == 0);
    char deep[3 * ES_JSON_DEPTH];
    memset(deep, '[', sizeof deep);
    CHECK(es_json_parse(deep, sizeof deep, NULL, 0) == 0);
    memset(deep + ES_JSON_DEPTH, ']', ES_JSON_DEPTH);
    CHECK(es_json_parse(deep, 2 * ES_JSON_DEPTH, NULL, 0) == ES_JSON_DEPTH);
    deep[2 * ES_JSON_DEPTH] = ' ';
    return 0;
}

static int check_json_values(void) {
    static const char text[] = "{\"a\": 0.1, \"b\": {\"c\": \"x\\u00e9\\ud83d\\ude00\"}, \"n\": -7,"
                               " \"t\": 1, \"t\": 2, \"z\": \"a\\u0000b\", \"big\": 1e999}";
    es_json_node nodes[64];
    es_json json = {text, nodes};
    size_t count = es_json_parse(text, sizeof text - 1, nodes, 64);
    double number;
    int whole;
    char string[16];
    CHECK(count > 0 && count < 64);
    CHECK(es_json_number(&json, es_json_get(&json, 0, "a"), &number) && !(number < 0.1) &&
          !(number > 0.1));
    CHECK(es_json_integer(&json, es_json_get(&json, 0, "n"), -10, 10, &whole) && whole == -7);
    CHECK(!es_json_integer(&json, es_json_get(&json, 0, "a"), 0, 1, &whole));
    CHECK(!es_json_integer(&json, es_json_get(&json, 0, "n"), 0, 10, &whole));
    CHECK(es_json_get(&json, 0, "t") == ES_JSON_NONE); /* there twice */
    CHECK(es_json_get(&json, 0, "c") == ES_JSON_NONE); /* further down */
    uint32_t c = es_json_get(&json, es_json_get(&json, 0, "b"), "c");
    CHECK(es_json_string(&json, c, string, sizeof string));
    CHECK(strcmp(string, "x\xc3\xa9\xf0\x9f\x98\x80") == 0);
    CHECK(es_json_is(&json, c, string) && !es_json_is(&json, c, "x"));
    CHECK(!es_json_string(&json, c, string, 4));
    CHECK(!es_json_string(&json, es_json_get(&json, 0, "z"), string, sizeof string));
    CHECK(!es_json_number(&json, es_json_get(&json, 0, "big"), &number));
    return 0;
}

static int check_pgm(void) {
    static const char good[] = "P5\n2 3\n255\nabcdef";
    static const char *bad[] = {"P5\n2 3\n255\nabcde", "P5\n2 3\n255\nabcdefg", "P2\n2 3\n255\nabcdef",
                                "P5\n02 3\n255\nabcdef", "P5\n0 3\n255\n", "P5\n2 3 255\nabcdef",
                                "P5\n2  3\n255\nabcdef", "P5\n# \n2 3\n255\nabcdef", "P5\n", "",
                                "P5\n801 1\n255\n", "P5\n2 3\n256\nabcdef", "P5\n1000 1\n255\n"};
    es_picture picture;
    CHECK(es_pgm_read((const uint8_t *)good, sizeof good - 1, &picture));
    CHECK(picture.width == 2 && picture.height == 3 && picture.pixels[5] == 'f');
    CHECK(picture.channels == 1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(!es_pgm_read((const uint8_t *)bad[i], strlen(bad[i]), &picture));
    static const char colour[] = "P6\n2 1\n255\nabcdef";
    CHECK(es_pgm_read((const uint8_t *)colour, sizeof colour - 1, &picture));
    CHECK(picture.channels == 3 && picture.width == 2 && picture.height == 1);
    CHECK(!es_pgm_read((const uint8_t *)colour, sizeof colour - 2, &picture));
    return 0;
}

static int count_sums(const char *text) {
    char copy[512];
    es_sum sums[4];
    memcpy(copy, text, strlen(text));
    return es_sums_parse(copy, strlen(text), sums, 4);
}

#define ZEROS "0000000000000000000000000000000000000000000000000000000000000000"

static int check_sums(void) {
    CHECK(count_sums("") == 0);
    CHECK(count_sums(ZEROS "  a\n" ZEROS "  b/c\n") == 2);
    CHECK(count_sums(ZEROS "  b\n" ZEROS "  a\n") == -1); /* not sorted */
    CHECK(count_sums(ZEROS "  a\n" ZEROS "  a\n") == -1);
    CHECK(count_sums(ZEROS "  a") == -1); /* no line end */
    CHECK(count_sums(ZEROS " *a\n") == -1);
    CHECK(count_sums(ZEROS "  \n") == -1);
    CHECK(count_sums("A" ZEROS "  a\n") == -1);
    CHECK(count_sums(ZEROS "  ../a\n") == -1);
    CHECK(count_sums(ZEROS "  /a\n") == -1);
    CHECK(count_sums(ZEROS "  a//b\n") == -1);
    CHECK(count_sums(ZEROS "  a/./b\n") == -1);
    CHECK(count_sums(ZEROS "  a/\n") == -1);
    CHECK(count_sums(ZEROS "  ..a\n") == 1);
    return 0;
}

static int check_names(void) {
    static const char *good[] = {"model.bin", "vectors/frame-0.pgm", "a/b/c_d.e-f", "_x", "a..b"};
    static const char *bad[] = {"../x", "/x", "a/../x", "a//x", "./x", "a/", "", ".hidden", "a/.git",
                                "..", "-x", "a\\x", "C:x", "a b", "\xc3\xbc", "a\nb"};
    char longest[ES_MAX_PLAIN + 1];
    memset(longest, 'a', sizeof longest);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CHECK(es_name_is_plain(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(!es_name_is_plain(bad[i], strlen(bad[i])));
    CHECK(!es_name_is_plain("a\0b", 3));
    CHECK(es_name_is_plain(longest, ES_MAX_PLAIN) && !es_name_is_plain(longest, ES_MAX_PLAIN + 1));
    return 0;
}

#define FORM_OF(payload, value)                                                                   \
    "{\"mediaType\":\"application/vnd.dev.sigstore.bundle.v0.3+json\",\"verificationMaterial\":"    \
    "{\"publicKey\":{\"hint\":\"" ZEROS "\"},\"tlogEntries\":[]},\"dsseEnvelope\":{\"payload\":\""    \
    payload "\",\"payloadType\":\"application/vnd.in-toto+json\",\"signatures\":[{\"sig\":\"" value   \
    "\",\"keyid\":\"\"}]}}"

static bool read_signature(const char *form, size_t count, es_signature *signature) {
    static char text[1024];
    memcpy(text, form, count);
    return es_signature_read(text, count, signature);
}

static int check_signatures(void) {
    static const char whole[] = FORM_OF("Zm9vYmE=", "Zm9vYg==");
    static const char *bad[] = {
        FORM_OF("Zm9vYmF=", ""), FORM_OF("Zm9vYh==", ""), FORM_OF("Zm9vYmE", ""),
        FORM_OF("Zm9v====", ""), FORM_OF("====", ""), FORM_OF("Zg=v", ""), FORM_OF("Zm9v\n", ""),
        FORM_OF("Zm-_", ""), FORM_OF("", "Zg="), FORM_OF("", "Z==="), FORM_OF("Zm9v", "") " ", "{}", ""};
    es_signature signature;
    CHECK(read_signature(whole, sizeof whole - 1, &signature));
    CHECK(signature.payload_count == 5 && memcmp(signature.payload, "fooba", 5) == 0);
    CHECK(signature.value_count == 4 && memcmp(signature.value, "foob", 4) == 0);
    CHECK(memcmp(signature.hint, ZEROS, 64) == 0);
    for (size_t i = 0; i < sizeof whole - 1; i++) CHECK(!read_signature(whole, i, &signature));
    CHECK(!read_signature(whole, sizeof whole, &signature));
    CHECK(read_signature(FORM_OF("", ""), sizeof FORM_OF("", "") - 1, &signature));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(!read_signature(bad[i], strlen(bad[i]), &signature));
    return 0;
}

#define STATEMENT(type, predicate, resources)                                                   \
    "{\"_type\":\"https://in-toto.io/Statement/" type "\",\"predicateType\":"                     \
    "\"https://model_signing/" predicate "\",\"predicate\":{\"resources\":[" resources "]}}"
#define RESOURCE(name, algorithm, digest)                                                       \
    "{\"name\":\"" name "\",\"algorithm\":\"" algorithm "\",\"digest\":\"" digest "\"}"
#define SUMS RESOURCE("SHA256SUMS", "sha256", ZEROS)
#define OTHER RESOURCE("model.bin", "sha256", ZEROS)

static int check_statements(void) {
    static const char *bad[] = {
        STATEMENT("v1", "signature/v1.0", ""), STATEMENT("v1", "signature/v1.0", OTHER),
        STATEMENT("v1", "signature/v1.0", SUMS "," SUMS), /* which of them? */
        STATEMENT("v1", "signature/v1.0", RESOURCE("SHA256SUMS", "sha512", ZEROS)),
        STATEMENT("v1", "signature/v1.0", RESOURCE("SHA256SUMS", "sha256", "0")),
        STATEMENT("v1", "signature/v1.0", RESOURCE("SHA256SUMS:0:9", "sha256", ZEROS)),
        STATEMENT("v0", "signature/v1.0", SUMS), STATEMENT("v1", "provenance/v1.0", SUMS),
        "{\"resources\":[" SUMS "]}", "[]", "{", "null", ""};
    static const char good[] = STATEMENT("v1", "signature/v1.0", OTHER "," SUMS);
    char message[ES_MESSAGE_BYTES];
    CHECK(es_statement_check(good, sizeof good - 1, ZEROS, message) == ES_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(es_statement_check(bad[i], strlen(bad[i]), ZEROS, message) == ES_ERR_SIGNATURE);
    return 0;
}

static int check_codes(void) {
    static const int all[] = {0, -1, -2, -3, -4, -10, -11, -12, -13, -14, -15, -16, -20, -21, -22,
                              -17, -18, -19, -23, -24, -25, -30, -40, -41, -42, -43};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) CHECK(*es_code(all[i]) != '\0');
    CHECK(*es_code(-99) == '\0' && *es_strerror(-99) != '\0');
    CHECK(strcmp(es_code(ES_ERR_BUNDLE_HASH), "E-BUNDLE-HASH") == 0);
    return 0;
}

static int check_arguments(void) {
    char message[ES_MESSAGE_BYTES];
    es_session *session = NULL;
    es_facts facts;
    uint8_t pixel = 0;
    CHECK(es_open(NULL, NULL, &session, message) == ES_ERR_ARGUMENT);
    CHECK(es_open("x", NULL, NULL, message) == ES_ERR_ARGUMENT);
    CHECK(es_open("/nonexistent", NULL, &session, NULL) == ES_ERR_BUNDLE_MISSING);
    CHECK(es_open("/nonexistent", NULL, &session, message) == ES_ERR_BUNDLE_MISSING);
    CHECK(session == NULL && strstr(message, "/nonexistent") != NULL);
    CHECK(es_verify(NULL, NULL, message) == ES_ERR_ARGUMENT);
    CHECK(es_infer(NULL, &pixel, 1, 1, 1, &pixel) == ES_ERR_ARGUMENT);
    CHECK(es_selftest(NULL, NULL) == ES_ERR_ARGUMENT && es_info(NULL, &facts) == ES_ERR_ARGUMENT);
    CHECK(strcmp(es_last_message(NULL), "") == 0);
    es_close(NULL);
    es_options options = {0};
    options.threads = -1;
    CHECK(es_open("x", &options, &session, message) == ES_ERR_ARGUMENT);
    options.threads = 0;
    options.max_width = ES_MAX_SIDE + 1;
    CHECK(es_open("x", &options, &session, message) == ES_ERR_ARGUMENT);
    options.max_width = 0;
    options.fill_holes = 2;
    CHECK(es_open("x", &options, &session, message) == ES_ERR_ARGUMENT);
    return 0;
}

int main(void) {
    if (check_sha256() || check_json() || check_json_values() || check_pgm() || check_sums() ||
        check_names() || check_signatures() || check_statements() || check_codes() ||
        check_arguments())
        return 1;
    puts("ok");
    return 0;
}
