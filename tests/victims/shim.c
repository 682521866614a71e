/* A library to preload whose malloc is made of another hooked function, as debugging shims are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#ifdef OF_CALLOC
void *malloc(size_t size) {
    void *block = calloc(1, size);
    if (block) memset(block, 0xa5, size);
    return block;
}
#else
/* A header before each block; everything ends in the next malloc. */
static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }
void *malloc(size_t size) {
    char *block = ((void *(*)(size_t))next("malloc"))(size + 16);
    if (!block) return NULL;
    memcpy(block, &size, sizeof size);
    return block + 16;
}
void free(void *block) {
    if (block) ((void (*)(void *))next("free"))((char *)block - 16);
}
void *calloc(size_t count, size_t size) {
    void *block = malloc(count * size);
    if (block) memset(block, 0, count * size);
    return block;
}
void *realloc(void *old, size_t size) {
    void *block = malloc(size);
    size_t before = 0;
    if (old) memcpy(&before, (char *)old - 16, sizeof before);
    if (block && old) { memcpy(block, old, size < before ? size : before); free(old); }
    return block;
}
#endif
