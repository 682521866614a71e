// Threads with names: some have ended, some wait until the input ends.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_barrier_t ready;
static void *kept[16];

static void *worker(void *argument) {
    long number = (long)argument;
    char name[16];
    snprintf(name, sizeof name, "worker-%ld", number);
    pthread_setname_np(pthread_self(), name);
    kept[number] = malloc(1000 + number);
    return NULL;
}

static void *waiter(void *argument) {
    worker(argument);
    pthread_barrier_wait(&ready);
    getchar();
    return NULL;
}

int main(void) {
    pthread_t threads[8];
    setvbuf(stdin, NULL, _IONBF, 0);
    setvbuf(stdout, NULL, _IONBF, 0);
    pthread_barrier_init(&ready, NULL, 3);
    for (long i = 0; i < 6; i++) {
        pthread_create(&threads[i], NULL, worker, (void *)i);
        pthread_join(threads[i], NULL);
    }
    for (long i = 6; i < 8; i++) pthread_create(&threads[i], NULL, waiter, (void *)i);
    pthread_barrier_wait(&ready);
    puts("ready");
    for (long i = 6; i < 8; i++) pthread_join(threads[i], NULL);
    return 0;
}
