// Loses blocks of known sizes, and holds blocks by everything that may hold a block. Then waits.
#include "say.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

// Pointers stand in memory of the program only where the test wants them: all others are kept as
// complements.
static uintptr_t hide(void *pointer) { return ~(uintptr_t)pointer; }

struct node {
    struct node *volatile next;
    char payload[92];
};

static void *volatile held_behind;
static void *volatile held_by_data;
static char *volatile held_inside;
static __thread void *volatile held_by_thread_storage;
static void *volatile *volatile pool;
static int pipes[2];
static int waits[2];
static volatile uintptr_t sink;

// A list of ten nodes that has lost its head: one is lost directly, nine are lost indirectly.
__attribute__((noinline)) static void lose_list(void) {
    struct node *list = NULL;
    for (int i = 0; i < 10; i++) {
        struct node *node = malloc(sizeof *node); // LINE list
        node->next = list;
        list = node;
    }
    sink = hide(list);
}

// A circle of three blocks: one is lost directly, two indirectly.
__attribute__((noinline)) static void lose_circle(void) {
    void *volatile *blocks[3];
    for (int i = 0; i < 3; i++) blocks[i] = calloc(1, 208); // LINE circle
    for (int i = 0; i < 3; i++) blocks[i][3] = (void *)blocks[(i + 1) % 3];
}

// A block whose only pointer stands in a freed block.
__attribute__((noinline)) static void lose_in_free(void) {
    void *volatile *holder = malloc(4000);
    holder[200] = malloc(304); // LINE stale
    // The freed block does not become part of the free end of the heap.
    held_behind = malloc(24);
    free((void *)holder);
}

// A large block, which has a mapping of its own.
__attribute__((noinline)) static void lose_large(void) {
    sink = hide(calloc(1, 1000000)); // LINE large
}

__attribute__((noinline)) static void hold_all(void) {
    void *volatile *outer = malloc(400);
    outer[7] = malloc(401);
    held_by_data = (void *)outer;
    held_inside = (char *)malloc(402) + 200;
    held_by_thread_storage = malloc(403);
    pool = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(pool != MAP_FAILED, "mmap");
    pool[4000] = malloc(404);
    pool[4001] = calloc(1, 2000001);
    // The large block holds a small block.
    ((void *volatile *)pool[4001])[100000] = malloc(405);
}

static void *hold_by_stack(void *unused) {
    void *volatile held = malloc(406);
    char byte;
    if (write(pipes[1], "", 1) != 1) _exit(96);
    if (read(waits[0], &byte, 1) < 0) _exit(97);
    sink = hide(held);
    return unused;
}

// Overwrites what earlier calls have left on the stack.
__attribute__((noinline)) static void clear_stack(void) {
    volatile char junk[1 << 15];
    memset((char *)junk, 0, sizeof junk);
    sink = (uintptr_t)junk[100];
}

static void *in_thread(void *unused) {
    lose_list();
    clear_stack();
    return unused;
}

int main(int count, char **arguments) {
    check(pipe(pipes) == 0 && pipe(waits) == 0, "pipe");
    pthread_t thread;
    check(pthread_create(&thread, NULL, in_thread, NULL) == 0, "thread");
    check(pthread_join(thread, NULL) == 0, "join");
    lose_circle();
    lose_large();
    hold_all();
    // Last, so that no later block has the memory of the freed block.
    lose_in_free();
    check(pthread_create(&thread, NULL, hold_by_stack, NULL) == 0, "thread");
    char byte;
    check(read(pipes[0], &byte, 1) == 1, "block of the thread");
    clear_stack();
    if (count > 1 && strcmp(arguments[1], "ends") == 0) _exit(0);
    // The only pointer to the block is in a register for as long as the thread waits.
    register void *held __asm__("rbx") = malloc(407);
    __asm__ volatile("" : "+r"(held));
    clear_stack();
    say("ready", 1);
    long got;
    __asm__ volatile("syscall"
                     : "=a"(got)
                     : "a"(0L), "D"(0L), "S"(&byte), "d"(1L), "r"(held)
                     : "rcx", "r11", "memory");
    free(held);
    _exit(got < 0);
}
