// CALL: sleeps or waits in this system call. The exit status says whether the call lasted as long
// as it should.
#define _GNU_SOURCE
#include "say.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/select.h>
#include <time.h>

static volatile sig_atomic_t got;
static void on_signal(int signal) { got = signal; }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: sleeper CALL");
    const char *call = argv[1];
    struct timespec second = {1, 200000000};
    double begun = now();
    if (strcmp(call, "nanosleep") == 0) {
        check(nanosleep(&second, NULL) == 0, "nanosleep");
    } else if (strcmp(call, "poll") == 0) {
        check(poll(NULL, 0, 1200) == 0, "poll");
    } else if (strcmp(call, "select") == 0) {
        struct timeval time = {1, 200000};
        check(select(0, NULL, NULL, NULL, &time) == 0, "select");
    } else if (strcmp(call, "futex") == 0) {
        pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
        pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
        struct timespec end;
        clock_gettime(CLOCK_REALTIME, &end);
        end.tv_sec += 1;
        end.tv_nsec += 200000000;
        end.tv_sec += end.tv_nsec / 1000000000;
        end.tv_nsec %= 1000000000;
        pthread_mutex_lock(&mutex);
        int status;
        // Without a signal there is no wake-up in between. A wake-up all the same shows in the
        // time.
        while ((status = pthread_cond_timedwait(&cond, &mutex, &end)) == 0) continue;
        check(status == ETIMEDOUT, "pthread_cond_timedwait");
    } else if (strcmp(call, "read") == 0) {
        char byte;
        check(read(0, &byte, 1) == 0, "read");
        return 0;
    } else if (strcmp(call, "sigwait") == 0) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        sigprocmask(SIG_BLOCK, &set, NULL);
        int signal = 0;
        check(sigwait(&set, &signal) == 0 && signal == SIGUSR1, "sigwait");
        return 0;
    } else if (strcmp(call, "pause") == 0) {
        signal(SIGUSR1, on_signal);
        check(pause() == -1 && errno == EINTR && got == SIGUSR1, "pause");
        return 0;
    } else {
        return 2;
    }
    return now() - begun < 1.19;
}
