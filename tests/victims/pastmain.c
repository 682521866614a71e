/* Opens a plug-in in the way that the first argument names, has it allocate, and frees what it was
   given. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *open_plugin(const char *way, const char *path) {
    if (!strcmp(way, "plain")) return dlopen(path, RTLD_NOW);
    if (!strcmp(way, "deep")) return dlopen(path, RTLD_NOW | RTLD_DEEPBIND);
    if (!strcmp(way, "deeplazy")) return dlopen(path, RTLD_LAZY | RTLD_DEEPBIND);
    if (!strcmp(way, "namespace")) return dlmopen(LM_ID_NEWLM, path, RTLD_NOW);
    if (!strcmp(way, "namespacelazy")) return dlmopen(LM_ID_NEWLM, path, RTLD_LAZY);
    return NULL;
}

static int by_handle(void) {
    void *libc = dlopen("libc.so.6", RTLD_NOW);
    void *(*give)(size_t) = (void *(*)(size_t))dlsym(libc, "malloc");
    void *(*give_versioned)(size_t) = (void *(*)(size_t))dlvsym(libc, "malloc", "GLIBC_2.2.5");
    void (*take)(void *) = (void (*)(void *))dlsym(libc, "free");
    take(give(1234)); void *kept = give_versioned(100000); /* handle */
    puts("ok");
    return kept == NULL;
}

int main(int count, char **arguments) {
    if (!strcmp(arguments[1], "handle")) return by_handle();
    void *plug = count == 3 ? open_plugin(arguments[1], arguments[2]) : NULL;
    if (!plug) { puts(dlerror()); return 3; }
    void *(*keep)(void) = (void *(*)(void))dlsym(plug, "plug_keep");
    void *(*zeroed)(void) = (void *(*)(void))dlsym(plug, "plug_zeroed");
    void *(*grow)(void *) = (void *(*)(void *))dlsym(plug, "plug_grow");
    void (*drop)(void *) = (void (*)(void *))dlsym(plug, "plug_free");
    for (int i = 0; i < 100; i++) drop(grow(keep()));
    void *kept = keep();
    void *also = zeroed();
    puts("ok");
    return kept == NULL || also == NULL;
}
