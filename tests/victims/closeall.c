// Closes every descriptor but the standard streams, opens others in their place, and goes on
// allocating, with a new thread.
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>

enum { BLOCKS = 20000 };

static void *work(void *unused) {
    (void)unused;
    for (int i = 0; i < BLOCKS; i++) check(malloc(21) != NULL, "malloc");
    return NULL;
}

int main(void) {
    work(NULL);
    closefrom(3);
    for (int i = 0; i < 32; i++) check(open("/dev/null", O_RDWR) >= 0, "open");
    work(NULL);
    pthread_t id;
    check(pthread_create(&id, NULL, work, NULL) == 0 && pthread_join(id, NULL) == 0, "the thread");
    say("left", 3 * BLOCKS);
}
