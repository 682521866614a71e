// as|nofile|fsize|lock: sets the limit (or locks all memory), then allocates enough blocks, or
// until an allocation fails.
#define _GNU_SOURCE
#include "say.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { BLOCKS = 100000 };

static unsigned long status_kib(const char *field) {
    char text[4096];
    FILE *file = fopen("/proc/self/status", "r");
    check(file != NULL, "/proc/self/status");
    unsigned long value = 0;
    while (fgets(text, sizeof text, file))
        if (strncmp(text, field, strlen(field)) == 0) value = strtoul(text + strlen(field), NULL, 10);
    fclose(file);
    return value;
}

static void limit(int resource, rlim_t value) {
    struct rlimit both = {value, value};
    check(setrlimit(resource, &both) == 0, "setrlimit");
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: limits as|nofile|fsize|lock");
    unsigned long size_kib = status_kib("VmSize:");
    if (strcmp(argv[1], "as") == 0) limit(RLIMIT_AS, (size_kib + 4096) * 1024);
    if (strcmp(argv[1], "nofile") == 0) limit(RLIMIT_NOFILE, 3);
    if (strcmp(argv[1], "fsize") == 0) limit(RLIMIT_FSIZE, 0);
    if (strcmp(argv[1], "lock") == 0) check(mlockall(MCL_CURRENT | MCL_FUTURE) == 0, "mlockall");
    unsigned long made = 0;
    while (made < BLOCKS && malloc(91) != NULL) made++;
    say("left", made);
    if (strcmp(argv[1], "lock") == 0) say("locked_kib", status_kib("VmLck:"));
}
