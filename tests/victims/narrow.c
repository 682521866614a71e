/* Allocates on stacks that have hardly any room left. The argument says which. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

/* What a call of malloc and free takes alone, with the signal's frame where there is one. */
enum { FRAME = 4096 + 2048, PATTERN = 0x5a };
static void *kept[200];
static int count;

__attribute__((noinline)) static void work(void) {
    void *block = malloc(5000); /* work */
    kept[count++] = block;
    free(malloc(60));
}

static void on_signal(int signal) { (void)signal; work(); }

/* Memory with an unreadable page below. */
static char *guarded(size_t bytes) {
    char *area = mmap(NULL, 4096 + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(area, 4096, PROT_NONE);
    (void)bytes;
    return area + 4096;
}

static void use_alternate(char *stack, size_t bytes) {
    stack_t alternate = {.ss_sp = stack, .ss_size = bytes};
    if (sigaltstack(&alternate, NULL)) { perror("sigaltstack"); exit(3); }
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
}

static ucontext_t outer, inner;
static void coroutine(void) { for (;;) { work(); swapcontext(&inner, &outer); } }

/* A second signal, as fast as it comes. */
static void on_alarm(int signal) {
    (void)signal;
    void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page, 4096);
}
static void tick(int flags) {
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags | SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = {{0, 100}, {0, 100}};
    setitimer(ITIMER_REAL, &often, NULL);
}
static void stop(void) {
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, NULL);
}
static void on_nested(int signal) {
    (void)signal;
    volatile unsigned long canary[64];
    for (int i = 0; i < 64; i++) canary[i] = PATTERN;
    for (int i = 0; i < 50; i++) {
        free(malloc(100 + i));
        for (int k = 0; k < 64; k++) if (canary[k] != PATTERN) _exit(9);
    }
}
static void busy(void) {
    for (int i = 0; i < 100000; i++) free(malloc(32 + (i & 255)));
    swapcontext(&inner, &outer);
}

static void *thread(void *argument) { (void)argument; work(); return NULL; }

/* The smallest alternate stack on which a signal can be taken, and what malloc needs. */
static size_t smallest(void) {
    unsigned long of_kernel = getauxval(51); // AT_MINSIGSTKSZ
    return (of_kernel ? of_kernel : 2048) + 3072;
}

int main(int argument_count, char **arguments) {
    const char *way = arguments[argument_count - 1];
    free(malloc(5000));
    if (!strcmp(way, "alternate")) {
        use_alternate(guarded(smallest()), smallest());
        for (int i = 0; i < 100; i++) raise(SIGUSR1);
    } else if (!strcmp(way, "within")) {
        /* Below the alternate stack lie this function's own variables. */
        struct { char below[4096]; char stack[65536]; } area;
        memset(area.below, PATTERN, sizeof area.below);
        use_alternate(area.stack, smallest());
        for (int i = 0; i < 100; i++) raise(SIGUSR1);
        for (size_t i = 0; i < sizeof area.below; i++) if (area.below[i] != PATTERN) { puts("overwritten"); return 4; }
    } else if (!strcmp(way, "coroutine")) {
        struct area { char below[4096]; char stack[3072]; } *area = malloc(sizeof *area);
        memset(area->below, PATTERN, sizeof area->below);
        getcontext(&inner);
        inner.uc_stack.ss_sp = area->stack;
        inner.uc_stack.ss_size = sizeof area->stack;
        makecontext(&inner, coroutine, 0);
        for (int i = 0; i < 100; i++) { swapcontext(&outer, &inner); work(); }
        for (size_t i = 0; i < sizeof area->below; i++) if (area->below[i] != PATTERN) { puts("overwritten"); return 4; }
    } else if (!strcmp(way, "threads")) {
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 16384);
        for (int i = 0; i < 100; i++) {
            pthread_t one;
            if (pthread_create(&one, &attributes, thread, NULL)) return 5;
            pthread_join(one, NULL);
        }
    } else if (!strcmp(way, "nested")) {
        /* A signal meets a handler that runs on the alternate stack and allocates. */
        static char stack[65536];
        use_alternate(stack, sizeof stack);
        struct sigaction action = {.sa_handler = on_nested, .sa_flags = SA_ONSTACK};
        sigaction(SIGUSR1, &action, NULL);
        tick(SA_ONSTACK);
        for (int i = 0; i < 1000; i++) raise(SIGUSR1);
        stop();
        work();
    } else if (!strcmp(way, "interrupted")) {
        /* A signal meets a coroutine that allocates. */
        getcontext(&inner);
        inner.uc_stack.ss_sp = malloc(100000);
        inner.uc_stack.ss_size = 100000;
        makecontext(&inner, busy, 0);
        tick(0);
        swapcontext(&outer, &inner);
        stop();
        work();
    } else if (!strcmp(way, "first")) {
        /* A thread whose first event is a signal handler's. */
        use_alternate(guarded(smallest()), smallest());
        raise(SIGUSR1);
    }
    printf("works %d\n", count);
    return 0;
}
