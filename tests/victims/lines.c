// Allocations on marked lines, some of them in functions that the compiler inlines.
#include <stdlib.h>

static void *volatile keep[16];

static inline __attribute__((always_inline)) void *inlined(size_t n) {
    return malloc(n); // LINE inlined
}

static inline __attribute__((always_inline)) void *inlined_twice(size_t n) {
    return inlined(n + 1); // LINE inlined_twice
}

__attribute__((noinline)) static void *plain(size_t n) {
    void *p = malloc(n); // LINE plain
    keep[15] = p;
    return p;
}

int main(void) {
    keep[0] = plain(1001); // LINE calls_plain
    keep[1] = inlined(1002); // LINE calls_inlined
    keep[2] = inlined_twice(1002); // LINE calls_inlined_twice
    keep[3] = calloc(7, 100); // LINE calloc
    keep[4] = realloc(NULL, 1005); // LINE realloc
    keep[5] = aligned_alloc(64, 1024); // LINE aligned_alloc
    for (int i = 6; i < 10; i++)
        keep[i] = malloc(10); // LINE loop
    return 0;
}
