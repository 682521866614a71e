// THREADS OPS SEED: threads map, cut, grow, move and unmap small ranges, so that each thread gets
// ranges just unmapped by others. The program prints the kept ranges.
#define _GNU_SOURCE
#include "say.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define KEPT 16

static int operations;
static _Atomic unsigned long pages_left, reserved_left, asked;

struct range { char *start; size_t pages; int reserved; };

static unsigned long next(uint64_t *state) {
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state >> 16;
}

static void change(struct range *range, uint64_t *state) {
    size_t pages = 1 + next(state) % 6, mapped = 0;
    if (!range->start) {
        range->reserved = next(state) % 4 == 0;
        int protection = range->reserved ? PROT_NONE : PROT_READ | PROT_WRITE;
        range->start = mmap(NULL, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(range->start != MAP_FAILED, "mmap");
        range->pages = pages, mapped = range->reserved ? 0 : pages;
    } else switch (next(state) % 5) {
        case 0:
            if (range->pages > 1) {
                check(munmap(range->start, PAGE) == 0, "munmap of the first page");
                range->start += PAGE, range->pages--;
                break;
            }
        // fall through
        case 1:
            check(munmap(range->start, range->pages * PAGE) == 0, "munmap");
            range->start = NULL;
            break;
        case 2:
            check(munmap(range->start + 1, PAGE) == -1, "munmap inside a page");
            check(mprotect(range->start, range->pages * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
            mapped = range->reserved ? range->pages : 0;
            range->reserved = 0;
            break;
        default: {
            char *moved = mremap(range->start, range->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
            check(moved != MAP_FAILED, "mremap");
            if (!range->reserved && pages > range->pages) mapped = pages - range->pages;
            range->start = moved, range->pages = pages;
        }
    }
    if (range->start && !range->reserved) range->start[(range->pages - 1) * PAGE] = 1;
    asked += mapped;
}

static void *work(void *seed) {
    uint64_t state = (uintptr_t)seed * 0x9e3779b97f4a7c15u + 88172645463325252u;
    struct range ranges[KEPT] = {{0}};
    for (int i = 0; i < operations; i++) change(&ranges[next(&state) % KEPT], &state);
    for (int i = 0; i < KEPT; i++)
        if (ranges[i].start) *(ranges[i].reserved ? &reserved_left : &pages_left) += ranges[i].pages;
    return NULL;
}

int main(int argc, char **argv) {
    check(argc == 4, "usage: mapthreads THREADS OPS SEED");
    int threads = atoi(argv[1]);
    operations = atoi(argv[2]);
    pthread_t ids[64];
    check(threads <= 64, "64 threads at most");
    for (long i = 0; i < threads; i++)
        check(!pthread_create(&ids[i], NULL, work, (void *)(atol(argv[3]) * 64 + i)), "a thread");
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    say("pages", pages_left), say("reserved_pages", reserved_left), say("asked", asked);
}
