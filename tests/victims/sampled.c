// Blocks of three sizes from three lines. Another thread frees half of the blocks, and some blocks
// move. The program prints its actions.
//
//   keep  remaining blocks live to the end
//   none  all blocks are freed
//   fork  a child frees the parent's blocks
#include "say.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>

enum { SMALL = 200000, MIDDLE = 10000, LARGE = 20, MOVED = 20000 };
static void *small[SMALL], *middle[MIDDLE], *large[LARGE], *moved[MOVED];
static unsigned long allocs, bytes, frees;

static void *counted(void *block, size_t size) {
    check(block != NULL, "memory");
    allocs++;
    bytes += size;
    return block;
}

static void drop(void **blocks, int from, int n, int step) {
    for (int i = from; i < n; i += step) {
        if (blocks[i]) frees++;
        free(blocks[i]);
        blocks[i] = NULL;
    }
}

static void *half(void *unused) {
    (void)unused;
    drop(small, 0, SMALL, 2);
    drop(middle, 0, MIDDLE, 2);
    drop(large, 0, LARGE, 2);
    return NULL;
}

static void all(void) {
    drop(small, 0, SMALL, 1);
    drop(middle, 0, MIDDLE, 1);
    drop(large, 0, LARGE, 1);
    drop(moved, 0, MOVED, 1);
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: sampled keep|none|fork");
    for (int i = 0; i < SMALL; i++) small[i] = counted(malloc(100), 100); // LINE small
    for (int i = 0; i < MIDDLE; i++) middle[i] = counted(calloc(5, 1000), 5000); // LINE middle
    for (int i = 0; i < LARGE; i++) large[i] = counted(malloc(1 << 20), 1 << 20); // LINE large
    for (int i = 0; i < MOVED; i++) moved[i] = counted(malloc(50), 50);
    for (int i = 0; i < MOVED; i++) {
        moved[i] = counted(realloc(moved[i], 700), 700); // LINE moved
        frees++;
    }
    // What fails is no call.
    volatile size_t too_much = PTRDIFF_MAX;
    for (int i = 0; i < 1000; i++)
        check(!malloc(too_much) && !malloc(SIZE_MAX - i) && !calloc(too_much, 2) && !calloc(too_much, 3), "too much");
    pthread_t thread;
    check(pthread_create(&thread, NULL, half, NULL) == 0, "a thread");
    pthread_join(thread, NULL);
    if (strcmp(argv[1], "fork") == 0) {
        pid_t child = fork();
        if (child == 0) {
            all();
            _exit(0);
        }
        int status;
        check(waitpid(child, &status, 0) == child && status == 0, "the child");
        all();
    }
    if (strcmp(argv[1], "none") == 0) all();
    say("allocs", allocs);
    say("bytes", bytes);
    say("frees", frees);
    return 0;
}
