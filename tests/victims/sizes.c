// N: keeps N blocks of sizes that no compression makes small.
#include "say.h"
#include <stdint.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    check(argc == 2, "usage: sizes N");
    uint64_t s = 88172645463325252u;
    for (long i = atol(argv[1]); i > 0; i--) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        check(malloc(s % 100000) != NULL, "malloc");
    }
}
