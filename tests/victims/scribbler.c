// SEED MILLISECONDS: a hostile target. Two threads allocate, and a third writes random words all
// over the memory shared with the aggregator: header, slots, links and rings. The program must only
// reach its own end.
#define _GNU_SOURCE
#include "say.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static atomic_int stop;

static void *work(void *argument) {
    void *kept[64] = {0};
    for (unsigned n = 0; !atomic_load(&stop); n++) {
        free(kept[n % 64]);
        kept[n % 64] = malloc(16 + n % 1000);
        if (n % 1024 == 0) usleep(100);
    }
    return argument;
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// A crash of ours is what we asked for: it is the aggregator that must not have one.
static void on_crash(int signal) {
    (void)signal;
    _exit(0);
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: scribbler SEED MILLISECONDS");
    uint64_t state = strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15u + 1;
    signal(SIGSEGV, on_crash);
    signal(SIGBUS, on_crash);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) check(pthread_create(&threads[i], NULL, work, NULL) == 0, "pthread_create");
    uint64_t start = 0, end = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "heapline-arena")) sscanf(line, "%lx-%lx", &start, &end);
    check(end > start, "an arena");
    usleep(20000);
    struct timespec now, begun;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    long limit = atol(argv[2]);
    do {
        for (int i = 0; i < 2000; i++) {
            // Mostly where it hurts: the header, the slots, the first segments.
            uint64_t random = next(&state), kind = random % 8;
            uint64_t span = kind < 2 ? 4096 : kind < 5 ? 70000 + 4096 * 256 : end - start;
            uint64_t value = next(&state);
            if (random >> 60 < 4) value &= 0xff;
            if (random >> 60 < 2) value = 0;
            volatile uint64_t *place = (volatile uint64_t *)(start + next(&state) % span / 8 * 8);
            *place = value;
        }
        usleep(200);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 < limit);
    atomic_store(&stop, 1);
    _exit(0);
}
