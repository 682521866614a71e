// LIBRARY: calls of a library whose code has no unwind tables (LIBRARY defined: the library).
#include "say.h"
#include <stdlib.h>

#define NOINLINE __attribute__((noinline))
#define BARRIER __asm__ volatile("" ::: "memory")

#ifdef LIBRARY
static void *volatile kept[8];

NOINLINE static void leaf(size_t size) {
    char local[200];
    memset(local, (int)size, sizeof local);
    kept[0] = malloc(size + (size_t)(local[0] == local[1] ? 0 : 1)); // LINE leaf
    BARRIER;
}

NOINLINE static void middle(int depth, size_t size) {
    if (depth == 0)
        leaf(size);
    else
        middle(depth - 1, size);
    BARRIER;
}

void enter(size_t size) {
    middle(3, size);
    BARRIER;
}
#else
#include <dlfcn.h>
#include <pthread.h>

static void (*enter)(size_t);

NOINLINE static void calls_library(size_t size) {
    enter(size);
    BARRIER;
}

static void *thread(void *ignored) {
    calls_library(3002);
    return ignored;
}

// Calls the library with rbp as no frame pointer.
void call_without_frame_pointer(void (*function)(size_t), size_t size);
__asm__(".globl call_without_frame_pointer\n"
        ".type call_without_frame_pointer, @function\n"
        "call_without_frame_pointer:\n"
        ".cfi_startproc\n"
        "push %rbp\n"
        ".cfi_adjust_cfa_offset 8\n"
        ".cfi_rel_offset %rbp, 0\n"
        "mov %rdi, %rax\n"
        "mov %rsi, %rdi\n"
        "mov $7, %ebp\n"
        "call *%rax\n"
        "pop %rbp\n"
        ".cfi_adjust_cfa_offset -8\n"
        ".cfi_restore %rbp\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size call_without_frame_pointer, . - call_without_frame_pointer\n");

int main(int argc, char **argv) {
    check(argc == 2, "usage: untabled LIBRARY");
    void *library = dlopen(argv[1], RTLD_NOW);
    check(library != NULL, "dlopen");
    enter = (void (*)(size_t))dlsym(library, "enter");
    check(enter != NULL, "dlsym");
    calls_library(3001);
    pthread_t other;
    check(pthread_create(&other, NULL, thread, NULL) == 0, "pthread_create");
    check(pthread_join(other, NULL) == 0, "pthread_join");
    for (int i = 0; i < 100; i++) call_without_frame_pointer(enter, 3003);
    return 0;
}
#endif
