// PROGRESS_FILE THREADS: each thread runs an endless sequence of operations. The thread's number
// determines the sequence. The thread publishes in the shared file how many operations have begun
// and how many have ended. A reader of the file knows the sequence, and so every possible state of
// the thread's blocks when the process is killed.
//
// Operation i of thread t on slot i % SLOTS: an empty slot gets a new block; a full slot is freed
// when i % 3 is 0 and otherwise reallocated. The new size is size_at(t, i), whose low three bits
// tell the thread.
#include "say.h"
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { SLOTS = 16, MOST_THREADS = 8 };

struct progress {
    _Atomic uint64_t begun, ended;
    uint64_t pad[14];
};

static struct progress *progress;

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static size_t size_at(uint64_t thread, uint64_t i) { return 4096 + mix(i * 8 + thread) % 8192 * 8 + thread; }

static void *work(void *argument) {
    uint64_t thread = (uint64_t)(uintptr_t)argument;
    struct progress *mine = &progress[thread];
    void *slots[SLOTS] = {0};
    for (uint64_t i = 0;; i++) {
        void **slot = &slots[i % SLOTS];
        size_t size = size_at(thread, i);
        mine->begun = i + 1;
        if (*slot == NULL) {
            *slot = malloc(size);
        } else if (i % 3 == 0) {
            free(*slot);
            *slot = NULL;
        } else {
            *slot = realloc(*slot, size);
        }
        if (*slot) memset(*slot, 1, size);
        mine->ended = i + 1;
    }
    return NULL;
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: kill9 PROGRESS_FILE THREADS");
    // Growing is to copy, not to remap: a kill then often falls inside of realloc.
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
#endif
    int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    size_t bytes = sizeof(struct progress) * MOST_THREADS;
    check(file >= 0 && ftruncate(file, (off_t)bytes) == 0, "the progress file");
    progress = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    check(progress != MAP_FAILED, "mapping the progress file");
    int threads = atoi(argv[2]);
    pthread_t id;
    for (intptr_t t = 1; t < threads; t++) check(pthread_create(&id, NULL, work, (void *)t) == 0, "pthread_create");
    work(NULL);
}
