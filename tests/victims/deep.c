// DEPTH: allocates at the bottom of a recursion of so many frames, and once in main.
#include "say.h"
#include <stdlib.h>

static void *volatile keep[2];

__attribute__((noinline)) static int down(int n) {
    if (n == 1) {
        keep[0] = malloc(7001);
        return keep[0] != NULL;
    }
    return down(n - 1) + (keep[1] == NULL);
}

int main(int argc, char **argv) {
    keep[1] = malloc(7002);
    return argc == 2 ? down(atoi(argv[1])) == 0 : 2;
}
