/* Clears its environment and runs a program that prints its own. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    free(malloc(1));
    clearenv();
    execl("/usr/bin/env", "env", (char *)0);
    return 1;
}
