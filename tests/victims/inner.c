// A jemalloc under the prefix `own_`, inside a library (-DLIBRARY; with -DNEEDED in a library
// needed by the program) or inside the program itself (-DPROGRAM). The victim keeps an account of
// the expected counts.
//
//   LIBRARY open    work in one thread and in four
//   LIBRARY reopen  as open; the library is closed and opened once more
//   LIBRARY early   as open; built with -DEARLY, a constructor has allocated before
//   LIBRARY race     eight threads open the library at once, and work when all have
//   LIBRARY sandbox  another library is opened under a filter that ends a process for open(2)
//   LIBRARY fork    a child works too, and exits
//   LIBRARY steps   one byte on standard input is one step, as in attached.c:
//                   `o` opens the library, `w` works
#define _GNU_SOURCE
#include "say.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct account {
    unsigned long allocs, bytes, live_blocks, live_bytes;
};

void work(struct account *);

#if defined(LIBRARY) || defined(PROGRAM)
void *own_malloc(size_t), *own_calloc(size_t, size_t), *own_realloc(void *, size_t);
void *own_aligned_alloc(size_t, size_t), *own_memalign(size_t, size_t), *own_valloc(size_t);
int own_posix_memalign(void **, size_t, size_t);
void *own_mallocx(size_t, int), *own_rallocx(void *, size_t, int);
size_t own_xallocx(void *, size_t, size_t, int);
void own_free(void *), own_dallocx(void *, int), own_sdallocx(void *, size_t, int);

static __thread struct account here;

static void *got(void *block, size_t size) {
    check(block != NULL, "an allocation failed");
    here.allocs++, here.bytes += size, here.live_blocks++, here.live_bytes += size;
    memset(block, 1, size);
    return block;
}

static void gone(size_t size) { here.live_blocks--, here.live_bytes -= size; }

static volatile size_t huge = PTRDIFF_MAX, half = SIZE_MAX / 2;

static void plain(void) {
    void *kept = got(own_malloc(100), 100), *other = got(own_calloc(3, 50), 150);
    check(own_malloc(huge) == NULL && errno == ENOMEM, "a huge malloc");
    check(own_calloc(half, 3) == NULL, "an overflowing calloc");
    errno = 77;
    own_free(other);
    check(errno == 77, "free changed errno");
    gone(150);
    own_free(NULL);
    void *place;
    check(own_posix_memalign(&place, 64, 700) == 0, "posix_memalign");
    got(place, 700);
    check(own_posix_memalign(&place, 3, 700) == EINVAL, "an alignment that is none");
    got(own_aligned_alloc(64, 640), 640);
    own_free(got(own_memalign(128, 300), 300));
    gone(300);
    got(own_valloc(5000), 5000);
    (void)kept;
}

static void moved(void) {
    char *block = got(own_realloc(NULL, 40), 40);
    // Within the class of its size, to another class, to one of its own, and in place.
    for (size_t before = 40, i = 0; i < 5; i++) {
        size_t size = (size_t[]){44, 4000, 100000, 5 << 20, 30}[i];
        block = own_realloc(block, size);
        gone(before), got(block, size);
        before = size;
    }
    check(own_realloc(block, huge) == NULL, "a huge realloc");
    block = own_rallocx(block, 9000, 0);
    gone(30), got(block, 9000);
    // A little more fits, much more does not.
    check(own_xallocx(block, 9010, 0, 0) >= 9010, "xallocx in place");
    gone(9000), got(block, 9010);
    check(own_xallocx(block, 1 << 20, 0, 0) < 1 << 20, "xallocx beyond its class");
    char *small = got(own_mallocx(400, 0), 400);
    check(own_xallocx(small, 100, 0, 0) >= 400, "xallocx does not shrink a small block");
    own_sdallocx(small, 400, 0), gone(400);
    own_sdallocx(block, 9010, 0);
    gone(9010);
    void *other = got(own_mallocx(333, 0), 333); /* kept */
    own_dallocx(got(own_mallocx(444, 0), 444), 0);
    gone(444);
    (void)other;
}

static void churn(void) {
    void *blocks[64] = {0};
    for (size_t i = 0; i < 20000; i++) {
        size_t at = i % 64;
        if (blocks[at]) own_free(blocks[at]), gone(16 + at * 7);
        blocks[at] = got(own_malloc(16 + at * 7), 16 + at * 7);
    }
}

void work(struct account *sum) {
    memset(&here, 0, sizeof here);
    plain();
    moved();
    churn();
    __atomic_add_fetch(&sum->allocs, here.allocs, __ATOMIC_RELAXED);
    __atomic_add_fetch(&sum->bytes, here.bytes, __ATOMIC_RELAXED);
    __atomic_add_fetch(&sum->live_blocks, here.live_blocks, __ATOMIC_RELAXED);
    __atomic_add_fetch(&sum->live_bytes, here.live_bytes, __ATOMIC_RELAXED);
}

#ifdef EARLY
__attribute__((constructor)) static void early(void) { check(own_malloc(12345) != NULL, "before all else"); }
#endif
#endif

#ifndef LIBRARY
static struct account all;
static void (*worker)(struct account *);

static void *in_thread(void *nothing) {
    worker(&all);
    return nothing;
}

static void open_it(const char *path) {
#if defined(PROGRAM) || defined(NEEDED)
    worker = work;
#else
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    check(handle != NULL, "dlopen");
    worker = (void (*)(struct account *))dlsym(handle, "work");
    check(worker != NULL, "dlsym");
#endif
}

static pthread_barrier_t barrier;
static const char *library;

static void *racer(void *nothing) {
    pthread_barrier_wait(&barrier);
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    check(handle != NULL && dlsym(handle, "work") != NULL, "dlopen in a race");
    worker = (void (*)(struct account *))dlsym(handle, "work");
    pthread_barrier_wait(&barrier);
    worker(&all);
    return nothing;
}

static void race(void) {
    pthread_t threads[8];
    pthread_barrier_init(&barrier, NULL, 8);
    for (int i = 0; i < 8; i++) pthread_create(&threads[i], NULL, racer, NULL);
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
}

// After this, a call of open(2), which the C library does not make, ends the process.
static void forbid_open(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_open, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    check(syscall(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges");
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "a filter");
}

static void in_threads(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, in_thread, NULL);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
}

int main(int argc, char **argv) {
    const char *way = argc > 2 ? argv[2] : "open";
    if (!strcmp(way, "steps")) {
        for (char step; write(1, ".", 1) == 1 && read(0, &step, 1) == 1;) {
            if (step == 'o') open_it(argv[1]);
            if (step == 'w') worker(&all);
        }
        return 0;
    }
    library = argv[1];
    if (strcmp(way, "race")) open_it(argc > 1 ? argv[1] : NULL);
    if (!strcmp(way, "race")) {
        race();
    } else if (!strcmp(way, "sandbox")) {
        worker(&all);
        forbid_open();
        check(dlopen("libutil.so.1", RTLD_NOW) != NULL, "dlopen in a sandbox");
        worker(&all);
    } else if (!strcmp(way, "fork")) {
        worker(&all);
        pid_t child = fork();
        if (child == 0) {
            in_threads();
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        check(status == 0, "the child");
    } else {
        worker(&all);
        in_threads();
        if (!strcmp(way, "reopen")) {
            void *handle = dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD);
            dlclose(handle), dlclose(handle);
            check(dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD) == NULL, "it is gone");
            open_it(argv[1]);
            worker(&all);
        }
    }
    say("allocs", all.allocs);
    say("bytes", all.bytes);
    say("live_blocks", all.live_blocks);
    say("live_bytes", all.live_bytes);
    return 0;
}
#endif
