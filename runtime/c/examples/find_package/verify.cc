// Compares every byte of a bundle with its hashes: verify-cpp BUNDLE
#include <edgeseg.h>

#include <iostream>

int main(int count, char **arguments) {
    char message[ES_MESSAGE_BYTES];
    if (count != 2) return 1;
    const int status = es_verify(arguments[1], nullptr, message);
    std::cout << (status == ES_OK ? "holds" : message) << '\n';
    return -status;
}
