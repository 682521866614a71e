// ROUNDS: two threads exchange blocks through common places. The threads work by turns alone (for
// some milliseconds) and, from one instant to the next, both at once. Assumptions about a thread
// alone must end in time.
#include "say.h"
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { PLACES = 32, STORM = 3000 };

static void *_Atomic places[PLACES];
static _Atomic long phase;
static _Atomic int arrived;
static long rounds;
static unsigned long made[2];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void exchange(int self, uint64_t *s) {
    *s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
    void *block = malloc(49);
    made[self]++;
    free(__atomic_exchange_n(&places[(*s >> 20) % PLACES], block, __ATOMIC_ACQ_REL));
}

static void *work(void *argument) {
    int self = (int)(intptr_t)argument;
    uint64_t numbers = 88172645463325252ull + (uint64_t)self;
    for (long round = 0; round < rounds; round++) {
        if (round % 2 == self) {
            double end = now() + 0.002 + 0.001 * (double)(numbers >> 33 & 15);
            while (now() < end)
                for (int i = 0; i < 50; i++) exchange(self, &numbers);
            __atomic_store_n(&phase, round + 1, __ATOMIC_RELEASE);
        } else {
            while (__atomic_load_n(&phase, __ATOMIC_ACQUIRE) <= round) continue;
        }
        for (int i = 0; i < STORM; i++) exchange(self, &numbers);
        // Both are done before one is alone again.
        __atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL);
        while (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) < 2 * (round + 1)) sched_yield();
    }
    return NULL;
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: turns ROUNDS");
    rounds = atol(argv[1]);
    pthread_t id;
    check(pthread_create(&id, NULL, work, (void *)1) == 0, "pthread_create");
    work(NULL);
    pthread_join(id, NULL);
    unsigned long left = 0;
    for (int i = 0; i < PLACES; i++) left += places[i] != NULL;
    say("made", made[0] + made[1]);
    say("left", left);
}
