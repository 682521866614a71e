// A program that calls itself, its thread and its file names that would be commands to a terminal.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static void *thread(void *ignored) {
    pthread_setname_np(pthread_self(), "t\033[2J\nt");
    return malloc(77);
}

int main(void) {
    pthread_t other;
    void *block;
    prctl(PR_SET_NAME, "n\033]0;x\a\nn\xff");
    pthread_create(&other, NULL, thread, NULL);
    pthread_join(other, &block);
    printf("%p\n", block);
    fflush(stdout);
    getchar();
    return 0;
}
