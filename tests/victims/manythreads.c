// churn N: N threads, 16 at a time, each short. crowd N: N threads that all live at the same time.
#include "say.h"
#include <pthread.h>
#include <stdlib.h>

static pthread_barrier_t all_here;
static int crowd;

static void *work(void *unused) {
    (void)unused;
    void *kept = malloc(61);
    for (int i = 0; i < 10; i++) free(malloc(83));
    if (crowd) pthread_barrier_wait(&all_here);
    return kept;
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: manythreads churn|crowd N");
    crowd = strcmp(argv[1], "crowd") == 0;
    int n = atoi(argv[2]), batch = crowd ? n : 16;
    static pthread_t ids[4096];
    check(batch <= 4096, "too many");
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    pthread_barrier_init(&all_here, NULL, (unsigned)batch);
    for (int done = 0; done < n; done += batch) {
        int now = n - done < batch ? n - done : batch;
        for (int i = 0; i < now; i++) check(pthread_create(&ids[i], &small, work, NULL) == 0, "pthread_create");
        for (int i = 0; i < now; i++) {
            void *block;
            check(pthread_join(ids[i], &block) == 0 && block, "pthread_join");
            if (!crowd) free(block);
        }
    }
    say("threads", (unsigned long)n);
}
