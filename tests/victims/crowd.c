// THREADS OPS: more threads than processors. The threads only allocate and free. Sizes are random.
#include "say.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

enum { KEPT = 64, MOST_THREADS = 1024 };

static long ops;

static void *work(void *argument) {
    uint32_t s = (uint32_t)(uintptr_t)argument * 2654435761u;
    void *kept[KEPT] = {0};
    for (long i = 0; i < ops; i++) {
        s = s * 1103515245 + 12345;
        void **place = &kept[s >> 20 & (KEPT - 1)];
        free(*place);
        *place = malloc(16 + (s >> 8 & 511));
    }
    for (int i = 0; i < KEPT; i++) free(kept[i]);
    return NULL;
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: crowd THREADS OPS");
    int threads = atoi(argv[1]);
    ops = atol(argv[2]);
    pthread_t ids[MOST_THREADS];
    for (int t = 0; t < threads; t++)
        check(pthread_create(&ids[t], NULL, work, (void *)(uintptr_t)(t + 1)) == 0, "pthread_create");
    for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
    return 0;
}
