// A program with a malloc of its own, called directly (with -DLINKED, a linked-in malloc). The
// program is untouched before an attach. One byte on standard input is one step, as in attached.c:
//
//   m  allocates a block of 1,000 bytes, kept
//   c  allocates a block of 600 bytes by calloc, which calls malloc inside the allocator, kept
//   r  allocates a block of 5,000 bytes by realloc, which calls malloc too, kept
//   t  allocates a block of 70 bytes by a jump at the end of a function, kept
//   s  allocates a block of 7 bytes by strdup of the C library, kept
//   f  frees all kept blocks
//   b  starts threads (the argument is their number), which allocate and free without end
//   e  ends these threads
//   a  prints a line with malloc's code, as a number
#define _GNU_SOURCE
#include "say.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#ifndef LINKED
// The allocator: powers of two, lists of free blocks behind one lock.
#define CLASSES 40
#define AREA ((size_t)512 << 20)
static char area[AREA] __attribute__((aligned(4096)));
static size_t used;
static void *lists[CLASSES];
static atomic_flag lock = ATOMIC_FLAG_INIT;

static int class_of(size_t size) {
    int n = 5;
    while (((size_t)1 << n) < size + 16) n++;
    return n;
}

__attribute__((noinline)) void *malloc(size_t size) {
    if (size > AREA / 2) return NULL;
    int n = class_of(size);
    while (atomic_flag_test_and_set(&lock)) {
    }
    char *block = lists[n];
    if (block) {
        lists[n] = *(void **)(block + 16);
    } else if (AREA - used >= (size_t)1 << n) {
        block = area + used;
        used += (size_t)1 << n;
    }
    atomic_flag_clear(&lock);
    if (!block) return NULL;
    *(size_t *)block = (size_t)n;
    return block + 16;
}

__attribute__((noinline)) void free(void *place) {
    if (!place) return;
    char *block = (char *)place - 16;
    int n = (int)*(size_t *)block;
    check(n >= 5 && n < CLASSES, "a block that is none");
    while (atomic_flag_test_and_set(&lock)) {
    }
    *(void **)(block + 16) = lists[n];
    lists[n] = block;
    atomic_flag_clear(&lock);
}

__attribute__((noinline)) static void *fresh(size_t size) {
    return malloc(size);
}

__attribute__((noinline)) void *calloc(size_t count, size_t size) {
    char *block = fresh(count * size);
    if (block) memset(block, 0, count * size);
    return block;
}

__attribute__((noinline)) void *realloc(void *old, size_t size) {
    char *block = malloc(size);
    if (block && old) {
        size_t before = ((size_t)1 << *(size_t *)((char *)old - 16)) - 16;
        memcpy(block, old, before < size ? before : size);
        free(old);
    }
    return block;
}

#endif

// The program.
static void *kept[1 << 16];
static int count;
static atomic_int ends;

__attribute__((noinline)) static void *small(void) {
    return malloc(70); // LINE jumped
}

static void *churn(void *seed) {
    uint64_t x = (uintptr_t)seed * 2654435761u + 1;
    unsigned char *own[64] = {0};
    while (!ends) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        int i = x & 63;
        if (own[i]) check(own[i][0] == i && own[i][31] == i, "a block was another's");
        free(own[i]);
        own[i] = x & 64 ? malloc(32 + (x >> 8) % 2000) : calloc(1, 32 + (x >> 8) % 2000);
        check(own[i] != NULL, "memory");
        own[i][0] = own[i][31] = (unsigned char)i;
    }
    for (int i = 0; i < 64; i++) free(own[i]);
    return NULL;
}

int main(int argc, char **argv) {
    static pthread_t threads[256];
    int wanted = argc > 1 ? atoi(argv[1]) : 0;
    for (;;) {
        char byte;
        if (write(1, ".", 1) != 1) return 1;
        if (read(0, &byte, 1) != 1) return 0;
        switch (byte) {
        case 'm':
            kept[count++] = malloc(1000); // LINE direct
            break;
        case 'c':
            kept[count++] = calloc(6, 100); // LINE cleared
            break;
        case 'r':
            kept[count++] = realloc(NULL, 5000); // LINE moved
            break;
        case 't':
            kept[count++] = small();
            break;
        case 's':
            kept[count++] = strdup("eleven"); // LINE doubled
            break;
        case 'f':
            while (count) free(kept[--count]);
            break;
        case 'b':
            ends = 0;
            for (long i = 0; i < wanted; i++) check(!pthread_create(&threads[i], NULL, churn, (void *)(i + 1)), "a thread");
            break;
        case 'e':
            ends = 1;
            for (int i = 0; i < wanted; i++) pthread_join(threads[i], NULL);
            break;
        case 'a': {
            uint64_t sum = 0;
            for (size_t i = 0; i < 1024; i++) sum = sum * 31 + ((volatile unsigned char *)main)[i];
            say("code", sum);
            break;
        }
        }
    }
}
