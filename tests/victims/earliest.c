/* Allocates before any constructor has run, and from a resolver of an indirect function. */
#include <stdio.h>
#include <stdlib.h>
static void *early[10];
static void before(int count, char **arguments, char **environment) {
    (void)count; (void)arguments; (void)environment;
    for (int i = 0; i < 10; i++) early[i] = malloc(1000); /* before */
    free(malloc(50));
}
__attribute__((section(".preinit_array"), used)) static void (*const entry)(int, char **, char **) = before;

static int answer(void) { return 42; }
static void *resolved;
static int (*resolve(void))(void) { resolved = malloc(2000); return answer; } /* resolver */
int indirect(void) __attribute__((ifunc("resolve")));

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("answer %d\n", indirect());
    return early[9] == NULL;
}
