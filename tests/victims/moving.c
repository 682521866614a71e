// Two stacks that differ in the place of a saved rbp, and in nothing else that lies leafward.
//
//     moving ROUNDS
//
// `moved` saves rbp in one of two places, calls from one of two sites, and leaves the other place
// as it was. The frame of `inner` lies in one of two places, so its rbp has one of two values. The
// rooms of `outer` and `inner` add up to the same size, so the frames of `moved` and `grab` lie in
// one place.
#include "say.h"
#include <alloca.h>
#include <stdlib.h>

#define NOINLINE __attribute__((noinline))
#define KEEP __asm__ volatile("" ::: "memory")

void moved(void (*call)(void), int path);
__asm__(".text\n.type moved,@function\n"
        "moved:\n .cfi_startproc\n"
        " sub $40, %rsp\n .cfi_def_cfa_offset 48\n"
        " test %esi, %esi\n jne 1f\n"
        " mov %rbp, 32(%rsp)\n .cfi_remember_state\n .cfi_offset %rbp, -16\n"
        " xor %ebp, %ebp\n call *%rdi\n mov 32(%rsp), %rbp\n jmp 2f\n"
        "1:\n .cfi_restore_state\n mov %rbp, 24(%rsp)\n .cfi_offset %rbp, -24\n"
        " xor %ebp, %ebp\n call *%rdi\n mov 24(%rsp), %rbp\n"
        "2:\n .cfi_restore %rbp\n add $40, %rsp\n .cfi_def_cfa_offset 8\n ret\n"
        " .cfi_endproc\n.size moved, . - moved\n");

static void *volatile block;

NOINLINE static void grab(void) {
    block = malloc(24);
    KEEP;
}

NOINLINE static void inner(int path, size_t room) {
    volatile char *bytes = alloca(room);
    bytes[0] = 1;
    moved(grab, path);
    KEEP;
}

NOINLINE static void outer(int path, size_t room, size_t rest) {
    volatile char *bytes = alloca(room);
    bytes[0] = 1;
    if (path == 0) {
        inner(path, rest);
        KEEP;
    } else {
        inner(path, rest);
        KEEP;
    }
    KEEP;
}

int main(int count, char **arguments) {
    check(count == 2, "moving ROUNDS");
    long rounds = atol(arguments[1]);
    for (long i = 0; i < rounds; i++) {
        outer(0, 1040, 16);
        free(block);
        outer(1, 16, 1040);
        free(block);
    }
    return 0;
}
