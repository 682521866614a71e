// N: thread 1 allocates and stores the block in a slot. Thread 2 loads the block and frees it at
// once, before looking at the loaded pointer: a processor may run far ahead of such a load, and so
// may the clock read for the free.
#include "say.h"
#include <pthread.h>
#include <stdlib.h>

enum { SLOTS = 1 << 10 };

static void *_Atomic slots[SLOTS];
static long n;

static void *give(void *unused) {
    for (long i = 0; i < n; i++) {
        // As soon as the slot is free again, so that the line is hot on the other side.
        while (__atomic_load_n(&slots[i % SLOTS], __ATOMIC_RELAXED) != NULL) continue;
        __atomic_store_n(&slots[i % SLOTS], malloc(49), __ATOMIC_RELEASE);
    }
    return unused;
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: handover N");
    n = atol(argv[1]);
    pthread_t id;
    check(pthread_create(&id, NULL, give, NULL) == 0, "pthread_create");
    for (long i = 0; i < n;) {
        void *block = __atomic_load_n(&slots[i % SLOTS], __ATOMIC_ACQUIRE);
        free(block);
        if (block == NULL) continue;
        __atomic_store_n(&slots[i++ % SLOTS], NULL, __ATOMIC_RELEASE);
    }
    pthread_join(id, NULL);
    say("handed_over", (unsigned long)n);
}
