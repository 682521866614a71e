// A library to be loaded, closed and loaded again. PLUGIN_B makes a second one of the same layout.
#include <stdlib.h>

#ifdef PLUGIN_B
void *grab(size_t n) {
    return malloc(n); // LINE grab_b
}
#else

void *grab(size_t n) {
    return malloc(n + 1); // LINE grab_a
}
#endif
