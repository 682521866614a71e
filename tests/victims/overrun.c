/* Writes behind the end of a block, which a checking allocator notices when the block is freed. */
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    volatile char *block = malloc(24);
    block[24] = 7;
    block[25] = 7;
    free((void *)block);
    puts("not noticed");
    return 0;
}
