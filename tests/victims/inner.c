/* A library with an allocator under a prefix (-DLIBRARY), whose functions nobody can call from outside, and a program that has
   the library work: PATH opens it, lets it work and free all, closes it, and opens it again; without a path it is linked.
   -DHEARD and -DUNHEARD: the library's constructor starts a thread that uses the allocator; with HEARD it looks
   pthread_create up first, as jemalloc does. */
#define _GNU_SOURCE
#include "say.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef LIBRARY
#define HIDDEN __attribute__((noinline))
#define OPEN __attribute__((visibility("default")))

static char area[1 << 26];
static size_t used, freed;

HIDDEN void *_rjem_mallocx(size_t size, int flags) {
    size_t at = __atomic_fetch_add(&used, (size + 79) & ~(size_t)63, __ATOMIC_RELAXED);
    if (at + size + 64 > sizeof area || flags < 0) return NULL;
    memcpy(area + at, &size, sizeof size);
    return area + at + 64;
}
HIDDEN void *_rjem_calloc(size_t count, size_t size) { return _rjem_mallocx(count * size, 0); }
HIDDEN void _rjem_sdallocx(void *block, size_t size, int flags) {
    if (block && size < sizeof area && flags == 0) __atomic_fetch_add(&freed, 1, __ATOMIC_RELAXED);
}
HIDDEN void *_rjem_rallocx(void *block, size_t size, int flags) {
    size_t old;
    memcpy(&old, (char *)block - 64, sizeof old);
    void *moved = _rjem_mallocx(size, flags);
    memcpy(moved, block, old < size ? old : size);
    _rjem_sdallocx(block, old, 0);
    return moved;
}
HIDDEN int _rjem_posix_memalign(void **place, size_t alignment, size_t size) {
    if (alignment > 64) return EINVAL;
    *place = _rjem_mallocx(size, 0);
    return *place ? 0 : ENOMEM;
}
OPEN const char *message(void) { return "<jemalloc>: no memory"; }

static void churn(size_t rounds) {
    for (size_t i = 0; i < rounds; i++) {
        void *block = _rjem_mallocx(64 + i % 3, 0); /* churn */
        check(block != NULL, "a block");
        _rjem_sdallocx(block, 64 + i % 3, 0);
    }
}
static void *churns(void *rounds) {
    churn((size_t)rounds);
    return NULL;
}

static void *kept[5];
OPEN void work(void) {
    double real = 1.5 * (double)used;
    for (int i = 0; i < 3; i++) kept[i] = _rjem_mallocx(1000, 0); /* kept */
    kept[3] = _rjem_calloc(10, 50); /* zeroed */
    kept[3] = _rjem_rallocx(kept[3], 5000, 0); /* moved */
    check(_rjem_posix_memalign(&kept[4], 32, 300) == 0 && kept[4], "aligned"); /* aligned */
    check(_rjem_posix_memalign(&kept[4], 4096, 300) == EINVAL, "refused");
    check(real >= 0.0, "registers");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, churns, (void *)1000);
    churn(500);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
}
OPEN void finish(void) {
    for (int i = 0; i < 5; i++) _rjem_sdallocx(kept[i], i < 3 ? 1000 : i == 3 ? 5000 : 300, 0);
}

#if defined HEARD || defined UNHEARD
static pthread_t started;
__attribute__((constructor)) static void start(void) {
    typedef int create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
#ifdef HEARD
    create *creates = (create *)dlsym(RTLD_NEXT, "pthread_create");
#else
    create *creates = pthread_create;
#endif
    creates(&started, NULL, churns, (void *)1000);
}
__attribute__((destructor)) static void stop(void) { pthread_join(started, NULL); }
#endif

#elif defined LINKED
void work(void);
int main(void) {
    work();
    return 0;
}
#else
typedef void act(void);

static void *open_and_work(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    check(library != NULL, "dlopen");
    act *work = (act *)dlsym(library, "work");
    check(work != NULL, "dlsym");
    work();
    return library;
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: inner PATH");
    for (int i = 0; i < 20; i++) {
        void *library = open_and_work(argv[1]);
        ((act *)dlsym(library, "finish"))();
        check(dlclose(library) == 0, "dlclose");
    }
    open_and_work(argv[1]);
    say("opened", 21);
    return 0;
}
#endif
