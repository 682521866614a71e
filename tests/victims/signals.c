// handler|altstack|jump MILLISECONDS: allocates in a loop and in the handler of a fast timer. The
// timer is set anew each time, because with a periodic timer a slow machine would spend all time in
// nested handlers. The program runs on bump.c, whose functions may be interrupted anywhere. With
// `jump` the handler leaves by siglongjmp, so the interrupted operation may have happened or not:
// `begun` and `ended` bound the expected count.
#define _GNU_SOURCE
#include "say.h"
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static volatile unsigned long begun, ended, handler_allocs, handler_frees, jumps;
static volatile sig_atomic_t jumping, may_jump, armed;
static sigjmp_buf top;

static void on_tick(int signal) {
    (void)signal;
    armed = 0;
    void *p = malloc(40);
    handler_allocs++;
    p = realloc(p, 80);
    handler_allocs++, handler_frees++;
    free(p);
    handler_frees++;
    if (jumping && may_jump) {
        jumps++;
        siglongjmp(top, 1);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void arm(long microseconds) {
    struct itimerval once = {{0, 0}, {0, microseconds}};
    armed = 1;
    check(setitimer(ITIMER_REAL, &once, NULL) == 0, "setitimer");
}

__attribute__((noinline)) static void one_pair(void) {
    begun++;
    void *volatile p = malloc(24);
    ended++;
    begun++;
    free(p);
    ended++;
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: signals MODE MILLISECONDS");
    jumping = strcmp(argv[1], "jump") == 0;
    static char stack[1 << 16];
    stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
    if (strcmp(argv[1], "altstack") == 0) {
        check(sigaltstack(&other, NULL) == 0, "sigaltstack");
        action.sa_flags |= SA_ONSTACK;
    }
    check(sigaction(SIGALRM, &action, NULL) == 0, "sigaction");
    double end = now() + atof(argv[2]);
    sigsetjmp(top, 1);
    may_jump = 1;
    for (long i = 0; now() < end; i++) {
        if (!armed) arm(20 + i % 64);
        one_pair();
    }
    may_jump = 0;
    arm(0);
    // Whatever was left behind by a jump, from here on every event counts again.
    for (int i = 0; i < 1000; i++) free(malloc(56));
    say("begun", begun);
    say("ended", ended);
    say("handler_allocs", handler_allocs);
    say("handler_frees", handler_frees);
    say("jumps", jumps);
}
