// DIRECTORY: locks itself into an empty directory as nobody, and allocates on, with a new thread.
#define _GNU_SOURCE
#include "say.h"
#include <grp.h>
#include <pthread.h>
#include <stdlib.h>

enum { BLOCKS = 20000 };

static void *work(void *unused) {
    (void)unused;
    for (int i = 0; i < BLOCKS; i++) check(malloc(21) != NULL, "malloc");
    return NULL;
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: privileges DIRECTORY");
    work(NULL);
    check(chroot(argv[1]) == 0 && chdir("/") == 0, "chroot");
    check(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0, "setuid");
    check(access("/proc", F_OK) != 0, "the directory is not empty");
    work(NULL);
    pthread_t id;
    check(pthread_create(&id, NULL, work, NULL) == 0 && pthread_join(id, NULL) == 0, "the thread");
    say("left", 3 * BLOCKS);
}
