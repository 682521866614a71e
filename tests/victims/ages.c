// Blocks of known ages and lifetimes: old ones, young ones, a cache at its bound, churn. After each
// part the program writes a byte and waits for one. With an argument the work ends with a forked
// child.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OLD = 100, FREED = 40, YOUNG = 300, CACHE = 50, CHURN = 100000 };

static void *volatile old[OLD], *volatile young[YOUNG], *volatile cache[CACHE];
static void *handed[1000];

static void pause_here(void) {
    char byte = '.';
    if (write(1, &byte, 1) != 1) _exit(99);
    if (read(0, &byte, 1) != 1) _exit(0);
}

__attribute__((noinline)) static void keep(void *volatile *at, size_t size) {
    *at = malloc(size);  // LINE cache
    if (*at == NULL) _exit(98);
    memset((void *)*at, 1, size);
}

__attribute__((noinline)) static void fill_cache(int turns) {
    for (int i = 0; i < turns; i++) {
        free(cache[i % CACHE]);
        keep(&cache[i % CACHE], 2001);
    }
}

__attribute__((noinline)) static void churn(void) {
    for (int i = 0; i < CHURN; i++) {
        void *volatile block = malloc(64);  // LINE churn
        free(block);
    }
}

// Two blocks at a time: none is freed by the next event of the thread.
__attribute__((noinline)) static void pairs(void) {
    for (int i = 0; i < 1000; i++) {
        void *volatile one = malloc(72);  // LINE pair
        void *volatile other = malloc(72);  // LINE pair too
        free(one);
        free(other);
    }
}

static void *free_all(void *nothing) {
    for (int i = 0; i < 1000; i++) free(handed[i]);
    return nothing;
}

// Freed at once, but by another thread.
__attribute__((noinline)) static void hand_over(void) {
    for (int i = 0; i < 1000; i++) handed[i] = malloc(88);  // LINE handed
    pthread_t thread;
    if (pthread_create(&thread, NULL, free_all, NULL) != 0) _exit(97);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv) {
    (void)argv;
    for (int i = 0; i < OLD; i++) old[i] = malloc(1003);  // LINE old
    fill_cache(CACHE);
    pause_here();
    for (int i = 0; i < FREED; i++) free(old[i]);
    for (int i = 0; i < YOUNG; i++) young[i] = malloc(3001);  // LINE young
    fill_cache(4 * CACHE);
    churn();
    pairs();
    hand_over();
    if (argc > 1 && fork() == 0) {
        young[0] = malloc(7001);
        _exit(0);
    }
    if (argc > 1) wait(NULL);
    pause_here();
    pause_here();
    return 0;
}
