// THREADS MODE: threads that allocate and free without end. With MODE `rain` each thread also gets
// signals all the time, counts them, and allocates in the handler; at the end every sent signal
// must have come. A byte on standard input is a step. The end of standard input is the program's
// end.
#define _GNU_SOURCE
#include "say.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

static atomic_int stop;
static atomic_ulong sent, came;

static void on_signal(int signal) {
    (void)signal;
    int before = errno;
    atomic_fetch_add(&came, 1);
    errno = before;
}

static void *work(void *argument) {
    (void)argument;
    unsigned long n = 0;
    void *kept[16] = {0};
    while (!atomic_load(&stop)) {
        unsigned i = n++ % 16;
        free(kept[i]);
        kept[i] = malloc(16 + n % 500);
        if (n % 64 == 0) usleep(500);
    }
    for (unsigned i = 0; i < 16; i++) free(kept[i]);
    return NULL;
}

static pthread_t threads[4096];
static int count;

static void *rain(void *argument) {
    (void)argument;
    sigset_t set;
    sigfillset(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    for (int i = 0; !atomic_load(&stop); i = (i + 1) % count) {
        // Queued signals: each that was accepted is delivered.
        if (pthread_sigqueue(threads[i], SIGRTMIN, (union sigval){0}) == 0) atomic_fetch_add(&sent, 1);
        if (i == 0) usleep(100);
    }
    return NULL;
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: busy THREADS MODE");
    count = atoi(argv[1]);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGRTMIN, &action, NULL);
    for (int i = 0; i < count; i++) check(pthread_create(&threads[i], NULL, work, NULL) == 0, "pthread_create");
    pthread_t rainer;
    int rains = strcmp(argv[2], "rain") == 0;
    if (rains) check(pthread_create(&rainer, NULL, rain, NULL) == 0, "pthread_create");
    char byte;
    do {
        check(write(1, ".", 1) == 1, "write");
    } while (read(0, &byte, 1) == 1);
    atomic_store(&stop, 1);
    if (rains) pthread_join(rainer, NULL);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    return atomic_load(&sent) != atomic_load(&came);
}
