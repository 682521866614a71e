// gaps LIVE: keeps LIVE small blocks, frees and allocates some of them again and again, as fast as
// it can, and measures the greatest time between two allocations.
//
// For each line on its standard input it says "PAIRS GREATEST_NS" of the time since the last line,
// and begins anew. It ends with its input.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define BUSY 1024

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

int main(int count, char **arguments) {
    long live = count == 2 ? atol(arguments[1]) : 0;
    if (live < BUSY) return 2;
    void **blocks = calloc((size_t)live, sizeof *blocks);
    for (long i = 0; i < live; i++) blocks[i] = malloc(8 + (size_t)i % 17);
    fcntl(0, F_SETFL, O_NONBLOCK);
    printf("ready\n"), fflush(stdout);
    uint64_t begun = now(), ticks = __rdtsc(), last = ticks, greatest = 0;
    for (uint64_t pairs = 1;; pairs++) {
        void **place = &blocks[(size_t)(live / BUSY) * (pairs % BUSY)];
        free(*place);
        *place = malloc(8 + pairs % 17);
        uint64_t tick = __rdtsc();
        if (tick - last > greatest) greatest = tick - last;
        last = tick;
        if (pairs % 1024) continue;
        char line[64];
        long n = read(0, line, sizeof line);
        if (n == 0) return 0;
        if (n > 0) {
            double ns = (double)(now() - begun) / (double)(__rdtsc() - ticks);
            printf("%llu %.0f\n", (unsigned long long)pairs, (double)greatest * ns), fflush(stdout);
            greatest = pairs = 0, begun = now(), ticks = last = __rdtsc();
        }
    }
}
