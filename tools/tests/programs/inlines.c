/* Allocations behind inlined calls, on lines that debug information and addr2line must agree on. */
#include <stdlib.h>

static inline void *innermost(size_t n) {
    return malloc(n);
}

static inline void *middle(size_t n) {
    void *first = innermost(n);
    return first ? innermost(n + 1) : first;
}

__attribute__((noinline)) void *outer(size_t n) {
    return middle(n * 2);
}

__attribute__((noinline, cold)) static void *rare(size_t n) {
    return calloc(n, 3);
}

int main(int argc, char **argv) {
    void *block = outer((size_t)argc);
    if (argc > 100) {
        block = rare((size_t)argc);
    }
    return block == argv;
}
