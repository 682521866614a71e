// BLOCKS CHILDREN: keeps BLOCKS blocks of 33 bytes, and replaces one after the other without end,
// as fast as it can, by blocks of two stacks in turn. At every instant BLOCKS blocks of 33 bytes
// are live, or one less.
//
// In the middle of this it forks CHILDREN children. Each allocates 10 blocks of 49 bytes and ends.
// The end of standard input is the program's end.
#include "say.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>

__attribute__((noinline)) static void *one(void) {
    void *volatile block = malloc(33);
    return block;
}

__attribute__((noinline)) static void *other(void) {
    void *volatile block = malloc(33);
    return block;
}

static void fork_one(void) {
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        void *volatile block;
        for (int i = 0; i < 10; i++) block = malloc(49);
        _exit(block == 0);
    }
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: instants BLOCKS CHILDREN");
    size_t blocks = strtoul(argv[1], 0, 10), children = strtoul(argv[2], 0, 10);
    void **kept = calloc(blocks, sizeof *kept);
    for (size_t i = 0; i < blocks; i++) kept[i] = one();
    fcntl(0, F_SETFL, O_NONBLOCK);
    say("ready", 1);
    char byte;
    for (size_t step = 1; step % 4096 || children > 0 || read(0, &byte, 1) != 0; step++) {
        void **place = &kept[step * 7919 % blocks];
        free(*place);
        *place = step % 2 ? other() : one();
        if (step % 20000 == 0 && children > 0) children--, fork_one();
    }
    while (wait(NULL) > 0) {}
    return 0;
}
