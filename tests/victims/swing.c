// A leak of 1000 bytes in each turn, under a load that swings by megabytes; and once, if wanted, a
// peak between two turns.
#include "say.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void *kept[1000];

__attribute__((noinline)) static void *leak(void) {
    return malloc(1000); // LINE leak
}

__attribute__((noinline)) static void *load(size_t bytes) {
    return malloc(bytes); // LINE load
}

__attribute__((noinline)) static void *peak(void) {
    return malloc(90000000); // LINE peak
}

int main(int argc, char **argv) {
    const struct timespec turn = {0, 10000000};
    int turns = atoi(argv[1]), with_peak = argc > 2;
    for (int i = 0; i < turns; i++) {
        kept[i] = leak();
        void *volatile p = load(1000000 * (1 + i % 7));
        nanosleep(&turn, NULL);
        if (with_peak && i == turns / 2) free(peak());
        free(p);
    }
    return kept[0] == NULL;
}
