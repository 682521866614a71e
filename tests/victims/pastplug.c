/* A plug-in without an allocator of its own; `own` gives it one, which a look-up in its own scope
   finds first. */
#include <stdlib.h>
#include <string.h>

#ifdef OWN
static char area[1 << 26];
static size_t used;
void *malloc(size_t size) {
    size_t at = used;
    used += (size + 31) & ~15ul;
    memcpy(area + at, &size, sizeof size);
    return area + at + 16;
}
void free(void *block) { (void)block; }
/* An allocator's function that calls another of its functions is one call. */
void *calloc(size_t count, size_t size) { return malloc(count * size); }
void *realloc(void *old, size_t size) { (void)old; return malloc(size); }
#endif

void *plug_keep(void) { return malloc(100000); }          /* keep */
void *plug_zeroed(void) { return calloc(10, 100); }       /* zeroed */
void *plug_grow(void *block) { return realloc(block, 200000); }
void plug_free(void *block) { free(block); }
