/* Limits itself, and by each step says what it still gets. First argument: what is limited; second:
   how much is left, in MiB. */
#define _GNU_SOURCE
#include "say.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

static long kilobytes(const char *key) {
    char line[200];
    long value = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, key, strlen(key))) sscanf(line + strlen(key), ": %ld", &value);
    fclose(file);
    return value;
}

static void limit(int resource, unsigned long value) {
    struct rlimit limit;
    check(getrlimit(resource, &limit) == 0, "getrlimit");
    limit.rlim_cur = value;
    check(setrlimit(resource, &limit) == 0, "setrlimit");
}

static void *wait_forever(void *nothing) { for (;;) pause(); return nothing; }

int main(int count, char **arguments) {
    check(count == 3, "usage: quota space|descriptors|streams|threads LEFT");
    const char *what = arguments[1];
    unsigned long left = strtoul(arguments[2], NULL, 10);
    int in = dup(0), out = dup(1);
    if (!strcmp(what, "streams")) for (int i = 0; i < 3; i++) close(i);
    if (!strcmp(what, "threads")) for (unsigned long i = 0; i < left; i++) {
        pthread_t one;
        check(pthread_create(&one, NULL, wait_forever, NULL) == 0, "pthread_create");
    }
    if (!strcmp(what, "space")) limit(RLIMIT_AS, (kilobytes("VmSize") + left * 1024) * 1024);
    if (!strcmp(what, "descriptors")) limit(RLIMIT_NOFILE, (unsigned long)out + 1 + left);
    dprintf(out, ".");
    char step;
    while (read(in, &step, 1) == 1) {
        free(malloc(777)); /* step */
        char got[100] = "nothing";
        if (!strcmp(what, "space")) {
            /* Two thirds of what is left alone. */
            void *block = malloc(left * 2 / 3 << 20);
            snprintf(got, sizeof got, "%s", block ? "memory" : strerror(errno));
            free(block);
        } else if (!strcmp(what, "descriptors")) {
            int first = open("/dev/null", O_RDONLY), second = open("/dev/null", O_RDONLY);
            snprintf(got, sizeof got, "%d %d", first, second);
            if (first >= 0) close(first);
            if (second >= 0) close(second);
        } else if (!strcmp(what, "streams")) {
            char byte = 'x';
            snprintf(got, sizeof got, "%d %d", (int)read(0, &byte, 1), (int)write(1, &byte, 1));
        }
        dprintf(out, "%s\n.", got);
    }
    return 7;
}
