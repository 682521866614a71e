// A program whose memory comes through wrappers of malloc, and through the C library.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOINLINE __attribute__((noinline, noclone))

NOINLINE void *xmalloc(size_t size) {
    void *block = malloc(size);
    if (!block) abort();
    return block;
}

NOINLINE void *CRYPTO_zalloc(size_t size) { return calloc(1, size); }
NOINLINE void *zmalloc(size_t size) { return xmalloc(size + 8); }
NOINLINE void *my_malloc(size_t size) { return zmalloc(size); }
NOINLINE void *g_realloc(void *block, size_t size) { return realloc(block, size); }

NOINLINE char *xstrdup(const char *text) {
    size_t size = strlen(text) + 1;
    return memcpy(my_malloc(size), text, size);
}

// A wrapper that no list knows.
NOINLINE void *pool_take(size_t size) { return xmalloc(size); }

int main(int argc, char **argv) {
    const char *kind = argv[argc - 1];
    static char text[30001];
    static void *kept[100];
    memset(text, 'x', sizeof text - 1);
    for (int i = 0; i < 50; i++) {
        if (!strcmp(kind, "xmalloc")) kept[i] = xmalloc(30000);             // LINE xmalloc
        if (!strcmp(kind, "zalloc")) kept[i] = CRYPTO_zalloc(30000);        // LINE zalloc
        if (!strcmp(kind, "nested")) kept[i] = my_malloc(30000);            // LINE nested
        if (!strcmp(kind, "realloc")) kept[0] = g_realloc(kept[0], 30000 * (i + 1)); // LINE realloc
        if (!strcmp(kind, "xstrdup")) kept[i] = xstrdup(text);              // LINE xstrdup
        if (!strcmp(kind, "strdup")) kept[i] = strdup(text);                // LINE strdup
        if (!strcmp(kind, "asprintf") && asprintf((char **)&kept[i], "%s!", text) < 0) return 1; // LINE asprintf
        if (!strcmp(kind, "pool")) kept[i] = pool_take(30000);              // LINE pool
    }
    if (!strcmp(kind, "peak")) free(xmalloc(3000000));                      // LINE peak
    return 0;
}
