// THREADS OPS FIRST_SEED SEEDS: threads hand blocks to each other through slots. Most blocks are
// freed by another thread than the allocating thread, and addresses are reused within nanoseconds.
// The program prints how many blocks are left. Sizes are odd, because nothing else in the process
// has blocks of odd sizes.
#include "say.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

enum { SLOTS = 64, SIZES = 4, MOST_THREADS = 64 };
static const size_t size_of[SIZES] = {17, 33, 49, 65};

static void *_Atomic slots[SLOTS];
static long ops;
static unsigned long allocs_of[MOST_THREADS][SIZES];

struct job {
    uint64_t seed;
    int thread;
};

static uint64_t next(uint64_t *s) {
    *s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
    return *s;
}

static void *work(void *argument) {
    const struct job *job = argument;
    uint64_t s = job->seed * 0x9e3779b97f4a7c15u + (uint64_t)job->thread * 0xbf58476d1ce4e5b9u + 1;
    for (long i = 0; i < ops; i++) {
        uint64_t r = next(&s);
        unsigned kind = (unsigned)(r >> 33) % SIZES;
        unsigned char *block = malloc(size_of[kind]);
        block[0] = (unsigned char)kind;
        allocs_of[job->thread][kind]++;
        free(__atomic_exchange_n(&slots[r % SLOTS], block, __ATOMIC_ACQ_REL));
    }
    return NULL;
}

int main(int argc, char **argv) {
    check(argc == 5, "usage: threads THREADS OPS FIRST_SEED SEEDS");
    int threads = atoi(argv[1]);
    ops = atol(argv[2]);
    uint64_t first = strtoul(argv[3], NULL, 10), seeds = strtoul(argv[4], NULL, 10);
    unsigned long left[SIZES] = {0};
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        pthread_t ids[MOST_THREADS];
        struct job jobs[MOST_THREADS];
        for (int t = 0; t < threads; t++) {
            jobs[t] = (struct job){seed, t};
            check(pthread_create(&ids[t], NULL, work, &jobs[t]) == 0, "pthread_create");
        }
        for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
        // What is in the slots now stays allocated for ever.
        for (int i = 0; i < SLOTS; i++) {
            unsigned char *block = __atomic_exchange_n(&slots[i], NULL, __ATOMIC_ACQ_REL);
            if (block) left[block[0]]++;
        }
    }
    for (int k = 0; k < SIZES; k++) {
        unsigned long made = 0;
        for (int t = 0; t < threads; t++) made += allocs_of[t][k];
        char name[32];
        snprintf(name, sizeof name, "left_%zu", size_of[k]);
        say(name, left[k]);
        snprintf(name, sizeof name, "made_%zu", size_of[k]);
        say(name, made);
    }
}
