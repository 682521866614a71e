// [PLUGIN]: a service whose file is replaced or removed while it runs. With -DUPGRADED the file is
// a newer build: the function has another name, place and line. One byte on standard input is one
// step, and the program answers with a byte when the step is done.
//
//   k  keeps a block of 3,001 bytes
//   l  loads PLUGIN, keeps a block of its `grab` (2,000 bytes wanted), and closes PLUGIN
//   a  prints a line with the address of the last block
//   x  becomes the program PLUGIN, by exec
#include "say.h"
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

static void *volatile kept;

static inline __attribute__((always_inline)) void *session(size_t n) {
    return malloc(n); // LINE session
}

#ifdef UPGRADED
__attribute__((noinline)) int added(int n) { return n * 7 + (int)(uintptr_t)kept; }

__attribute__((noinline)) void another_name(void) {
    kept = session(3001 + (size_t)(added(3) & 0)); // LINE another_name
}
#define keep_session another_name
#else
__attribute__((noinline)) void keep_session(void) {
    kept = session(3001); // LINE keep_session
}
#endif

static void load(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    check(library != NULL, "dlopen");
    void *(*grab)(size_t) = (void *(*)(size_t))dlsym(library, "grab");
    check(grab != NULL, "dlsym");
    kept = grab(2000);
    check(kept != NULL && dlclose(library) == 0, "dlclose");
}

static void step(char step, const char *plugin) {
    if (step == 'k') keep_session(); // LINE step
    if (step == 'l') load(plugin);
    if (step == 'x') check(execl(plugin, plugin, (char *)NULL) == 0, "exec");
    if (step == 'a') {
        char line[32];
        int length = snprintf(line, sizeof line, "%p\n", kept);
        check(write(1, line, (size_t)length) == length, "write");
    }
}

int main(int argc, char **argv) {
    char byte = '.';
    do {
        if (byte != '.') step(byte, argc > 1 ? argv[1] : NULL); // LINE main
        check(write(1, ".", 1) == 1, "write");
    } while (read(0, &byte, 1) == 1);
    return 0;
}
