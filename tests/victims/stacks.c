// N: as many distinct stacks; the bits of a number choose the way down.
#include "say.h"
#include <stdlib.h>

__attribute__((noinline)) static void down(unsigned long bits, int levels) {
    // Two calls that the compiler must not make one.
    if (levels == 0) {
        free(malloc(24));
    } else if (bits & 1) {
        down(bits >> 1, levels - 1);
        __asm__ volatile("# odd" ::: "memory");
    } else {
        down(bits >> 1, levels - 1);
        __asm__ volatile("# even" ::: "memory");
    }
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: stacks N");
    unsigned long n = strtoul(argv[1], NULL, 10);
    for (unsigned long i = 0; i < n; i++) down(i, 24);
    say("stacks", n);
}
