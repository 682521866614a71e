// Threads that allocate, are named only then, and end at once: by themselves, by prctl, by their
// creator, and in a forked child.
#define _GNU_SOURCE
#include "say.h"
#include <pthread.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static void *volatile kept;

static void *by_itself(void *name) {
    kept = malloc(6001);
    pthread_setname_np(pthread_self(), name);
    return NULL;
}

static void *by_prctl(void *name) {
    kept = malloc(6002);
    prctl(PR_SET_NAME, name);
    return NULL;
}

static pthread_barrier_t begun, named;

static void *by_creator(void *ignored) {
    kept = malloc(6003);
    pthread_barrier_wait(&begun);
    pthread_barrier_wait(&named);
    pthread_exit(ignored);
}

static void run(void *(*work)(void *), const char *name) {
    pthread_t thread;
    check(pthread_create(&thread, NULL, work, (void *)name) == 0, "pthread_create");
    check(pthread_join(thread, NULL) == 0, "pthread_join");
}

int main(void) {
    run(by_itself, "by-itself");
    run(by_prctl, "by-prctl");
    pthread_barrier_init(&begun, NULL, 2);
    pthread_barrier_init(&named, NULL, 2);
    pthread_t thread;
    check(pthread_create(&thread, NULL, by_creator, NULL) == 0, "pthread_create");
    pthread_barrier_wait(&begun);
    pthread_setname_np(thread, "by-creator");
    pthread_barrier_wait(&named);
    check(pthread_join(thread, NULL) == 0, "pthread_join");
    pid_t child = fork();
    if (child == 0) {
        kept = malloc(6005);
        run(by_itself, "in-child");
        _exit(0);
    }
    int status;
    check(waitpid(child, &status, 0) == child && status == 0, "the child");
    return 0;
}
