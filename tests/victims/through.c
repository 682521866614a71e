// Allocates through functions of the C library: in functions called by it, in functions that it
// calls back, and in a signal handler. Each block has a size of its own, and stays.
#define _GNU_SOURCE
#include "say.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *volatile kept;

static __attribute__((noinline)) void copied(void) {
    kept = strdup("a text of thirty-three bytes....."); // LINE copied
}

static __attribute__((noinline)) void formatted(void) {
    char *text;
    if (asprintf(&text, "%041d", 7) == 41) kept = text; // LINE formatted
}

static int compare(const void *a, const void *b) {
    static int once;
    if (!once++) kept = malloc(777); // LINE compare
    return *(const int *)a - *(const int *)b;
}

static __attribute__((noinline)) void sorted(void) {
    int numbers[] = {5, 3, 1, 4, 2};
    qsort(numbers, 5, sizeof *numbers, compare); // LINE sorted
    check(numbers[0] == 1 && numbers[4] == 5, "qsort");
}

static void initialise(void) {
    kept = malloc(555); // LINE once
}

static void *work(void *unused) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, initialise); // LINE work
    return unused;
}

static void handle(int signal) {
    if (signal) kept = malloc(888); // LINE handle
}

static __attribute__((noinline)) void raised(void) {
    signal(SIGUSR1, handle);
    raise(SIGUSR1); // LINE raised
    check(kept != NULL, "the handler");
}

int main(void) {
    copied();    // LINE main copied
    formatted(); // LINE main formatted
    sorted();    // LINE main sorted
    raised();    // LINE main raised
    pthread_t thread;
    check(pthread_create(&thread, NULL, work, NULL) == 0 && pthread_join(thread, NULL) == 0, "a thread");
    return 0;
}
