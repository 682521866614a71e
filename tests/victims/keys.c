// Takes every key for values of threads, after threads with blocks have ended, and prints the
// number of keys. Waits for the end of standard input first.
#include "say.h"
#include <pthread.h>
#include <stdlib.h>

static void *volatile kept[4];

static void *work(void *place) {
    *(void *volatile *)place = malloc(700);
    return NULL;
}

static void run_threads(void) {
    for (int i = 0; i < 4; i++) {
        pthread_t thread;
        check(pthread_create(&thread, NULL, work, (void *)&kept[i]) == 0, "pthread_create");
        check(pthread_join(thread, NULL) == 0, "pthread_join");
    }
}

int main(void) {
    char byte;
    check(write(1, ".", 1) == 1, "write");
    while (read(0, &byte, 1) == 1) check(write(1, ".", 1) == 1, "write");
    run_threads();
    pthread_key_t key;
    int keys = 0;
    while (pthread_key_create(&key, NULL) == 0) keys++;
    run_threads();
    printf("%d keys\n", keys);
    return 0;
}
