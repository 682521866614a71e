/* 1000 blocks of 500 bytes, of which 600 stay, and one that calloc gives and that goes. */
#include <stdio.h>
#include <stdlib.h>
static void *kept[1000];
int main(void) {
    for (int i = 0; i < 1000; i++) kept[i] = malloc(500); /* kept */
    for (int i = 0; i < 400; i++) free(kept[i]);
    void *zeroed = calloc(1, 9000);
    free(zeroed);
    setvbuf(stdout, NULL, _IONBF, 0);
    puts("ok");
    return kept[999] == NULL;
}
