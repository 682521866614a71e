// A program with its own malloc. This malloc comes before any preloaded malloc, so nothing can be
// recorded.
#include "say.h"

static char area[1 << 16];
static size_t used;

void *malloc(size_t size) {
    used = (used + size + 15) & ~(size_t)15;
    return area + used - ((size + 15) & ~(size_t)15);
}

void free(void *block) { (void)block; }

int main(void) {
    void *volatile p = malloc(100);
    free(p);
    say("used", used);
}
