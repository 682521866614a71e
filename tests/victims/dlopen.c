// PLUGIN_A PLUGIN_B: loads a, closes a, loads b (at the same address, as a rule), closes b, loads a
// again. After each load the program calls the library's `grab`, also from a thread.
#include "say.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

typedef void *grab(size_t);

static void *in_thread(void *function) {
    for (int i = 0; i < 1000; i++) free(((grab *)function)(300));
    return ((grab *)function)(400);
}

static uintptr_t use(const char *path, size_t size) {
    void *library = dlopen(path, RTLD_NOW);
    check(library != NULL, "dlopen");
    grab *function = (grab *)dlsym(library, "grab");
    check(function != NULL, "dlsym");
    check(function(size) != NULL, "grab");
    pthread_t id;
    check(pthread_create(&id, NULL, in_thread, (void *)function) == 0, "pthread_create");
    void *block;
    check(pthread_join(id, &block) == 0 && block != NULL, "the thread's block");
    check(dlclose(library) == 0, "dlclose");
    return (uintptr_t)function;
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: dlopen PLUGIN_A PLUGIN_B");
    uintptr_t a = use(argv[1], 2000);
    uintptr_t b = use(argv[2], 2000);
    uintptr_t again = use(argv[1], 3000);
    say("same_address", a == b && b == again);
}
