// Does a step for each byte of standard input: an old block, a block that only the old block holds,
// a block that is lost.
#include "say.h"
#include <stdint.h>
#include <stdlib.h>

static void *volatile *old;
static volatile uintptr_t sink;

__attribute__((noinline)) static void step(char what) {
    if (what == 'o') old = malloc(3000);
    if (what == 'h') old[100] = malloc(4000);
    if (what == 'l') sink = ~(uintptr_t)malloc(5000); // LINE lost
}

// Overwrites what earlier calls have left on the stack.
__attribute__((noinline)) static void clear_stack(void) {
    volatile char junk[1 << 15];
    memset((char *)junk, 0, sizeof junk);
    sink = (uintptr_t)junk[100];
}

int main(void) {
    char what = '.';
    do {
        if (what != '.') step(what);
        clear_stack();
        if (write(1, ".", 1) != 1) _exit(99);
    } while (read(0, &what, 1) == 1);
    return 0;
}
