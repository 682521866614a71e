// A server of 200 threads that knows exactly which of its blocks are live: each thread takes a
// connection and obeys its lines.
//
//   work        allocates and frees; answers "ok"
//   generation  blocks from here on are of the second generation, told by their odd sizes
//   live        answers with number and bytes of the second generation's live blocks

#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 200, SLOTS = 512, OPS = 60 };

static int listener;
static atomic_int generation;
static atomic_long live_blocks, live_bytes;

static void count(size_t size, int sign) {
    if (size & 1) {
        atomic_fetch_add(&live_blocks, sign);
        atomic_fetch_add(&live_bytes, sign * (long)size);
    }
}

static void work(void **blocks, size_t *sizes, unsigned *seed) {
    for (int i = 0; i < OPS; i++) {
        unsigned at = (*seed = *seed * 1664525 + 1013904223) >> 16 & (SLOTS - 1);
        if (blocks[at]) {
            count(sizes[at], -1);
            free(blocks[at]);
        }
        sizes[at] = 32 * (1 + (*seed >> 8) % 60) + (generation ? 1 : 0);
        blocks[at] = malloc(sizes[at]);
        memset(blocks[at], 1, sizes[at]);
        count(sizes[at], 1);
    }
}

static void serve(FILE *lines, int out, unsigned seed) {
    void *blocks[SLOTS] = {0};
    size_t sizes[SLOTS];
    char line[64], answer[64];
    while (fgets(line, sizeof line, lines)) {
        strcpy(answer, "ok\n");
        if (!strcmp(line, "work\n"))
            work(blocks, sizes, &seed);
        else if (!strcmp(line, "generation\n"))
            generation = 1;
        else
            snprintf(answer, sizeof answer, "%ld %ld\n", live_blocks, live_bytes);
        if (write(out, answer, strlen(answer)) < 0)
            break;
    }
    for (int i = 0; i < SLOTS; i++)
        if (blocks[i]) {
            count(sizes[i], -1);
            free(blocks[i]);
        }
}

static void *thread(void *number) {
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        FILE *lines = fdopen(connection, "r");
        serve(lines, connection, (unsigned)(size_t)number);
        fclose(lines);
    }
    return NULL;
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, length) || listen(listener, 64) || getsockname(listener, (void *)&address, &length))
        return 1;
    for (size_t i = 0; i < THREADS; i++) {
        pthread_t ignored;
        if (pthread_create(&ignored, NULL, thread, (void *)i))
            return 1;
    }
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;)
        pause();
}
