// PLUGIN: allocations of 7001, 7002, ... bytes, each at the end of a stack that is hard to walk.
#define _GNU_SOURCE
#include "say.h"
#include <alloca.h>
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

#define NOINLINE __attribute__((noinline))
// Keeps a call from becoming a jump.
#define BARRIER __asm__ volatile("" ::: "memory")

static void *volatile keep[64];
static volatile int zero;

NOINLINE static void grab(size_t size) {
    keep[size % 64] = malloc(size);
    BARRIER;
}

NOINLINE static int recurse(int n, size_t size) {
    int below = 0;
    if (n > 0)
        below = recurse(n - 1, size);
    else
        grab(size);
    BARRIER;
    return below + n + zero;
}

NOINLINE static void with_alloca(int n) {
    char *local = alloca((size_t)n);
    memset(local, n, (size_t)n);
    char array[n + zero];
    memset(array, n, sizeof array);
    grab(7002);
    keep[0] = local[n - 1] + array[0] ? keep[0] : NULL;
}

static jmp_buf back;

NOINLINE static void jump_out(int n) {
    char local[n];
    memset(local, n, (size_t)n);
    grab(7050);
    if (local[0]) longjmp(back, 1);
}

NOINLINE static void after_longjmp(void) {
    if (setjmp(back) == 0) jump_out(1000);
    grab(7003);
}

static ucontext_t home, away;

NOINLINE static void in_coroutine(void) {
    recurse(3, 7004);
    swapcontext(&away, &home);
    recurse(2, 7005);
    swapcontext(&away, &home);
}

NOINLINE static void coroutine(void) {
    static char stack[1 << 16];
    getcontext(&away);
    away.uc_stack.ss_sp = stack;
    away.uc_stack.ss_size = sizeof stack;
    away.uc_link = NULL;
    makecontext(&away, in_coroutine, 0);
    swapcontext(&home, &away);
    grab(7006);
    swapcontext(&home, &away);
}

static volatile size_t signal_size;

NOINLINE static void on_signal(int signal) {
    recurse(signal ? 1 : 0, signal_size);
    BARRIER;
}

NOINLINE static void handlers(void) {
    static char stack[1 << 16];
    stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    signal_size = 7007;
    raise(SIGUSR1);
    sigaltstack(&other, NULL);
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR2, &action, NULL);
    signal_size = 7008;
    raise(SIGUSR2);
    BARRIER;
}

static int compare(const void *a, const void *b) {
    static int once;
    if (!once++) grab(7009);
    return *(const int *)a - *(const int *)b;
}

NOINLINE static void callback(void) {
    int numbers[] = {3, 1, 2, 5, 4};
    qsort(numbers, 5, sizeof *numbers, compare);
    BARRIER;
}

static void *in_thread(void *unused) {
    recurse(4, 7011);
    BARRIER;
    return unused;
}

static void at_exit(void) {
    grab(7012);
    BARRIER;
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: unwind PLUGIN");
    recurse(5, 7001);
    with_alloca(100 + argc);
    after_longjmp();
    coroutine();
    handlers();
    callback();
    recurse(300, 7010);
    pthread_t id;
    check(pthread_create(&id, NULL, in_thread, NULL) == 0 && pthread_join(id, NULL) == 0, "the thread");
    atexit(at_exit);
    void *library = dlopen(argv[1], RTLD_NOW);
    check(library != NULL, "dlopen");
    void *(*function)(size_t) = (void *(*)(size_t))dlsym(library, "grab");
    keep[13] = function(7012);
    recurse(5, 7014);
    exit(0);
}
