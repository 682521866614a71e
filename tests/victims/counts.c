// strict|others|foreign|valgrind: calls every function of the malloc family in every case, and
// keeps an account of the expected counts. `others` adds functions missing in the C library.
// `foreign` is for other allocators.
#define _GNU_SOURCE
#include "say.h"
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>

static unsigned long allocs, frees, bytes, live_blocks, live_bytes;
static unsigned long failed_reallocs, pvallocs, pvalloc_bytes;

static void *got(void *p, size_t size) {
    check(p != NULL, "an allocation failed");
    allocs++, bytes += size, live_blocks++, live_bytes += size;
    return p;
}

static void gone(size_t size) { frees++, live_blocks--, live_bytes -= size; }

static void drop(void *p, size_t size) {
    errno = 77;
    free(p);
    check(errno == 77, "free changed errno");
    gone(size);
}

// Other allocators and valgrind do not all set errno.
static int strict = 1;
static int no_memory(void) { return !strict || errno == ENOMEM; }

// The compiler must not know that these sizes cannot be had.
static volatile size_t huge = PTRDIFF_MAX, half = SIZE_MAX / 2, none = 0;

static void plain(void) {
    void *a = got(malloc(100), 100);
    void *zero = got(malloc(none), 0);
    errno = 0;
    check(malloc(huge) == NULL && no_memory(), "a huge malloc");
    char *c = got(calloc(3, 5), 15);
    check(c[0] == 0 && c[14] == 0, "calloc does not clear");
    errno = 0;
    check(calloc(half, 3) == NULL && no_memory(), "an overflowing calloc");
    got(calloc(none, 7), 0);
    check(malloc_usable_size(a) >= 100, "malloc_usable_size");
    drop(a, 100);
    drop(zero, 0);
    free(NULL);
    drop(c, 15);
}

// glibc frees and gives nothing; other allocators give a block of size 0.
static void shrunk_to_nothing(void *block, size_t before) {
    gone(before);
    if (block) got(block, 0);
}

static void reallocs(void) {
    char *p = got(realloc(NULL, 40), 40);
    p[39] = 'x';
    p = realloc(p, 400000);
    gone(40), got(p, 400000);
    check(p[39] == 'x', "realloc does not copy");
    p = realloc(p, 10);
    gone(400000), got(p, 10);
    void *volatile same = p;
    errno = 0;
    check(realloc(same, huge) == NULL && no_memory(), "a huge realloc");
    failed_reallocs++;
    shrunk_to_nothing(realloc(p, none), 10);
    got(realloc(NULL, none), 0);
}

static void reallocarrays(void) {
    void *p = got(reallocarray(NULL, 4, 25), 100);
    p = reallocarray(p, 8, 25);
    gone(100), got(p, 200);
    void *volatile same = p;
    errno = 0;
    check(reallocarray(same, half, 3) == NULL && no_memory(), "an overflowing reallocarray");
    shrunk_to_nothing(reallocarray(p, none, 8), 200);
}

static void aligned(void) {
    void *p = NULL;
    check(posix_memalign(&p, 256, 1000) == 0 && (uintptr_t)p % 256 == 0, "posix_memalign");
    got(p, 1000);
    void *kept = p;
    check(posix_memalign(&p, 3, 1000) == EINVAL && p == kept, "posix_memalign with a wrong alignment");
    check(posix_memalign(&p, 64, huge) == ENOMEM && (!strict || p == kept), "posix_memalign of a huge size");
    drop(kept, 1000);
    p = got(aligned_alloc(64, 640), 640);
    check((uintptr_t)p % 64 == 0, "aligned_alloc");
    p = got(memalign(4096, 123), 123);
    check((uintptr_t)p % 4096 == 0, "memalign");
    drop(p, 123);
    p = got(valloc(321), 321);
    check((uintptr_t)p % 4096 == 0, "valloc");
}

static void pages(void) {
#ifdef __GLIBC__
    void *p = got(pvalloc(5000), 5000);
    pvallocs++, pvalloc_bytes += 5000;
    check(malloc_usable_size(p) >= 8192, "pvalloc rounds up to pages");
    drop(p, 5000);
#endif
}

// What this C library may lack, and Heapline's hooks offer all the same.
extern void free_sized(void *, size_t) __attribute__((weak));
extern void free_aligned_sized(void *, size_t, size_t) __attribute__((weak));

static void newer_and_older(void) {
    if (free_sized) {
        free_sized(got(malloc(48), 48), 48);
        gone(48);
    }
    if (free_aligned_sized) {
        free_aligned_sized(got(aligned_alloc(32, 64), 64), 32, 64);
        gone(64);
    }
#ifdef __GLIBC__
#if !__GLIBC_PREREQ(2, 34)
    // The first call of dlsym allocates the thread's place for messages.
    allocs++, bytes += 32, live_blocks++, live_bytes += 32;
#endif
#endif
    void (*cfree)(void *) = (void (*)(void *))dlsym(RTLD_DEFAULT, "cfree");
    if (cfree) {
        cfree(got(malloc(72), 72));
        gone(72);
    }
    say("cfree", cfree != NULL);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "strict";
    strict = strcmp(mode, "strict") == 0;
    plain();
    reallocs();
    reallocarrays();
    aligned();
    // valgrind aborts a program there, and jemalloc has no pvalloc.
    if (strcmp(mode, "valgrind") != 0 && strcmp(mode, "foreign") != 0) pages();
    if (strcmp(mode, "others") == 0) newer_and_older();
    say("allocs", allocs);
    say("frees", frees);
    say("bytes", bytes);
    say("live_blocks", live_blocks);
    say("live_bytes", live_bytes);
    say("failed_reallocs", failed_reallocs);
    say("pvallocs", pvallocs);
    say("pvalloc_bytes", pvalloc_bytes);
}
