/* Two threads call one session: edgeseg-threads BUNDLE ENGINE
 *
 * Every answer must be ES_BUSY or the right mask. Prints "ANSWERED BUSY"; returns 1 otherwise. */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgeseg.h"

enum { SIDE = 96, ANSWERS = 50 };

static es_session *session;
static uint8_t frames[2][SIDE * SIDE], expected[2][SIDE * SIDE];
static int answered[2], busy[2], wrong[2];

static void *call(void *argument) {
    int own = *(int *)argument;
    uint8_t mask[SIDE * SIDE];
    while (answered[own] < ANSWERS) {
        memset(mask, 7, sizeof mask);
        int status = es_infer(session, frames[own], SIDE, SIDE, SIDE, mask);
        if (status == ES_ERR_BUSY) {
            busy[own]++;
            sched_yield();
            wrong[own] += mask[0] != 7 || mask[sizeof mask - 1] != 7;
        } else {
            answered[own]++;
            wrong[own] += status != ES_OK || memcmp(mask, expected[own], sizeof mask) != 0;
        }
    }
    return NULL;
}

int main(int count, char **arguments) {
    char message[ES_MESSAGE_BYTES];
    if (count != 3) return 2;
    es_options options = {.engine = arguments[2], .threads = 1};
    if (es_open(arguments[1], &options, &session, message) != ES_OK) {
        puts(message);
        return 1;
    }
    for (int own = 0; own < 2; own++) {
        for (int i = 0; i < SIDE * SIDE; i++)
            frames[own][i] = (uint8_t)((i % SIDE / 24 + i / SIDE / 32 + own) % 2 * 200);
        if (es_infer(session, frames[own], SIDE, SIDE, SIDE, expected[own]) != ES_OK) return 1;
    }
    pthread_t threads[2];
    int names[2] = {0, 1};
    for (int own = 0; own < 2; own++) pthread_create(&threads[own], NULL, call, &names[own]);
    for (int own = 0; own < 2; own++) pthread_join(threads[own], NULL);
    printf("%d %d\n", answered[0] + answered[1], busy[0] + busy[1]);
    es_close(session);
    return wrong[0] + wrong[1] != 0;
}
