/* A library whose constructor runs before all others. */
#include <stdlib.h>
void *first[6];
__attribute__((constructor)) static void start(void) {
    for (int i = 0; i < 6; i++) first[i] = malloc(1000); /* first */
}
