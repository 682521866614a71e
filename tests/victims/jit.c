// MODE: allocations through code that the program writes at run time, without unwind tables.
// chain: 5 levels with frame pointers; then, at the same place, 3 levels with larger frames; then
// the 5 levels again. garbage: a level without a frame pointer, called with each kind of rbp that
// is no frame pointer.
#define _GNU_SOURCE
#include "say.h"
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define NOINLINE __attribute__((noinline))

typedef void target(size_t);

static void *volatile kept[64];
static volatile int zero;

NOINLINE static void grab(size_t size) {
    kept[size % 64] = malloc(size);
    __asm__ volatile("" ::: "memory");
}

// Calls `code` with `size`, and with rbp as given.
void call_with_rbp(target *code, size_t size, uintptr_t rbp);
__asm__(".globl call_with_rbp\n"
        ".type call_with_rbp, @function\n"
        "call_with_rbp:\n"
        ".cfi_startproc\n"
        "push %rbp\n"
        ".cfi_adjust_cfa_offset 8\n"
        ".cfi_rel_offset %rbp, 0\n"
        "mov %rdi, %rax\n"
        "mov %rsi, %rdi\n"
        "mov %rdx, %rbp\n"
        "call *%rax\n"
        "pop %rbp\n"
        ".cfi_adjust_cfa_offset -8\n"
        ".cfi_restore %rbp\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size call_with_rbp, . - call_with_rbp\n");

static unsigned char *put(unsigned char *at, const void *bytes, size_t length) {
    memcpy(at, bytes, length);
    return at + length;
}

// Writes a function that calls `next`, with `room` bytes of locals. The call is 32 bytes behind the
// start in every function.
static target *level(unsigned char *at, target *next, unsigned char room, int frame_pointer) {
    unsigned char *start = at;
    if (frame_pointer) at = put(at, "\x55\x48\x89\xe5", 4); // push rbp; mov rbp, rsp
    at = put(at, "\x48\x83\xec", 3);                        // sub rsp, room
    *at++ = room;
    at = put(at, "\x48\xb8", 2); // mov rax, next
    at = put(at, &next, sizeof next);
    while (at < start + 32) *at++ = 0x90;
    at = put(at, "\xff\xd0", 2); // call rax
    at = put(at, "\x48\x83\xc4", 3); // add rsp, room
    *at++ = room;
    if (frame_pointer) *at++ = 0x5d; // pop rbp
    *at++ = 0xc3;
    return (target *)start;
}

static unsigned char *place;

static unsigned char *fresh(void) {
    place = mmap(place, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (place ? MAP_FIXED_NOREPLACE : 0),
                 -1, 0);
    check(place != MAP_FAILED, "mmap");
    return place;
}

static target *chain(int levels, unsigned char room, int frame_pointers) {
    unsigned char *memory = fresh();
    target *code = grab;
    for (int i = 0; i < levels; i++) code = level(memory + 64 * i, code, room, frame_pointers);
    check(mprotect(memory, 4096, PROT_READ | PROT_EXEC) == 0, "mprotect");
    return code;
}

static void gone(void) { check(munmap(place, 4096) == 0, "munmap"); }

NOINLINE static void calls_code(target *code, size_t size) {
    code(size);
    __asm__ volatile("" ::: "memory");
}

static void chains(void) {
    calls_code(chain(5, 16, 1), 1001);
    gone();
    calls_code(chain(3, 96, 1), 1002);
    for (int i = 0; i < 1000; i++) calls_code((target *)(place + 64 * 2), 1003);
    gone();
    calls_code(chain(5, 16, 1), 1004);
    gone();
}

static void garbage(void) {
    target *code = chain(1, 24, 0);
    uintptr_t *heap = malloc(4096);
    check(heap != NULL, "malloc");
    uintptr_t array[64] = {0};
    uintptr_t top = (uintptr_t)(array + 40);
    uintptr_t words[][3] = {
        // rbp, and the two words where rbp leads to, in the array
        {0, 0, 0},
        {1, 0, 0},
        {0x10, 0, 0},
        {~(uintptr_t)7, 0, 0},
        {(uintptr_t)array + 1, 0, 0},
        {(uintptr_t)array - (1 << 16), 0, 0},
        {(uintptr_t)heap, 0, 0},
        {(uintptr_t)array + (64 << 20), 0, 0},
        {top, top + 64, 0},
        {top, top + 64, 17},
        {top, top + 64, ~(uintptr_t)0},
        {top, top + 64, (uintptr_t)heap + 64},
        {top, top + 64, (uintptr_t)array},
        {top, top + 64, (uintptr_t)grab + 1},
        {top, top + 64, (uintptr_t)code + 8},
        // Plausible, but leads back to where it stands.
        {top, top, (uintptr_t)code + 34},
        {top, top - 8, (uintptr_t)code + 34},
    };
    size_t kinds = sizeof words / sizeof *words;
    for (int round = 0; round < 50; round++) {
        for (size_t kind = 0; kind < kinds; kind++) {
            array[40] = words[kind][1];
            array[41] = words[kind][2];
            call_with_rbp(code, 2000 + kind, words[kind][0]);
        }
    }
    gone();
    say("kinds", kinds);
    free(heap);
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: jit MODE");
    if (strcmp(argv[1], "chain") == 0) chains();
    if (strcmp(argv[1], "garbage") == 0) garbage();
    return zero;
}
