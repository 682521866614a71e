// A big temporary block, then a small block. Each byte on standard input is a step, answered by a
// byte.
#include "say.h"
#include <stdlib.h>

static void step(void) {
    char byte = '.';
    if (write(1, &byte, 1) != 1 || read(0, &byte, 1) != 1) _exit(97);
}

__attribute__((noinline)) static void *big(void) {
    return malloc(50000000); // LINE big
}

__attribute__((noinline)) static void *small(void) {
    return malloc(30000); // LINE small
}

__attribute__((noinline)) static void *kept(void) {
    return malloc(1000); // LINE kept
}

int main(void) {
    void *volatile base = kept();
    step();
    void *volatile p = big();
    step();
    free(p);
    step();
    p = small();
    step();
    free(p);
    step();
    return base == NULL;
}
