/* Compares every byte of a bundle with its hashes: verify BUNDLE */
#include <edgeseg.h>
#include <stdio.h>

int main(int count, char **arguments) {
    char message[ES_MESSAGE_BYTES];
    if (count != 2) return 1;
    int status = es_verify(arguments[1], NULL, message);
    puts(status == ES_OK ? "holds" : message);
    return -status;
}
