// [PLUGIN]: a block of 5001 bytes at the end of three calls, and a block of a plug-in, which is
// unloaded. With a byte on standard input for each of the two, where STEPS is defined.
#include "say.h"
#include <dlfcn.h>
#include <stdlib.h>

#define NOINLINE __attribute__((noinline))
#define BARRIER __asm__ volatile("" ::: "memory")

static void *volatile kept;

NOINLINE static void inner(void) {
    kept = malloc(5001); // LINE inner
    BARRIER;
}

NOINLINE static void outer(void) {
    inner(); // LINE outer
    BARRIER;
}

static void step(void) {
#ifdef STEPS
    char byte;
    if (write(1, ".", 1) != 1 || read(0, &byte, 1) != 1) _exit(0);
#endif
}

int main(int argc, char **argv) {
    step();
    outer(); // LINE main
    if (argc > 1) {
        void *library = dlopen(argv[1], RTLD_NOW);
        check(library != NULL, "dlopen");
        void *(*grab)(size_t) = (void *(*)(size_t))dlsym(library, "grab");
        check(grab != NULL && grab(5002) != NULL, "grab");
        check(dlclose(library) == 0, "dlclose");
    }
    step();
    return 0;
}
