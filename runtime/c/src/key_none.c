/* A library without OpenSSL: no signature can be verified, so a key opens nothing. */
#include "internal.h"

int es_key_check(const char *path, const es_signature *signature, char *message) {
    (void)path;
    (void)signature;
    return es_fail(message, ES_ERR_OPENSSL_MISSING,
                   "this library verifies no signatures; build it with -DEDGESEG_OPENSSL=ON");
}
