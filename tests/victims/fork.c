// fork|thread|vfork|spawn|clone: the process allocates, makes children in one way, and goes on
// allocating. Children of the first two kinds allocate too, free inherited blocks, and start a
// thread. The program prints the numbers of the parent alone.
#define _GNU_SOURCE
#include "say.h"
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { CHILDREN = 20, BLOCKS = 500 };

static unsigned long allocs;
static void *inherited[BLOCKS];
extern char **environ;

static void *take(size_t size) {
    allocs++;
    void *p = malloc(size);
    check(p != NULL, "malloc");
    return p;
}

static void *in_thread(void *unused) {
    (void)unused;
    for (int i = 0; i < BLOCKS; i++) free(malloc(333));
    return NULL;
}

// What a child does with the heap; a wrong heap ends in abort, which the parent sees.
static void live_a_little(int with_thread) {
    for (int i = 0; i < BLOCKS; i++) {
        free(inherited[i]);
        inherited[i] = realloc(malloc(50), 5000);
        memset(inherited[i], 1, 5000);
    }
    pthread_t id;
    if (with_thread && (pthread_create(&id, NULL, in_thread, NULL) || pthread_join(id, NULL))) _exit(1);
    _exit(7);
}

static pid_t child_of(const char *mode) {
    char *const argv[] = {"sh", "-c", "exit 7", NULL};
    pid_t pid = -1;
    if (strcmp(mode, "spawn") == 0) {
        check(posix_spawn(&pid, "/bin/sh", NULL, NULL, argv, environ) == 0, "posix_spawn");
    } else if (strcmp(mode, "vfork") == 0) {
        pid = vfork();
        if (pid == 0) {
            execv("/bin/sh", argv);
            _exit(1);
        }
    } else if (strcmp(mode, "clone") == 0) {
        pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
        if (pid == 0) live_a_little(0);
    } else {
        pid = fork();
        if (pid == 0) live_a_little(1);
    }
    return pid;
}

static void *volatile_worker(void *stop) {
    unsigned long made = 0;
    while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED)) free(malloc(444)), made++;
    return (void *)made;
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: fork MODE");
    for (int i = 0; i < BLOCKS; i++) inherited[i] = take(1000);
    int stop = 0;
    pthread_t worker;
    int threaded = strcmp(argv[1], "thread") == 0;
    if (threaded) check(pthread_create(&worker, NULL, volatile_worker, &stop) == 0, "pthread_create");
    for (int i = 0; i < CHILDREN; i++) {
        pid_t pid = child_of(argv[1]);
        check(pid > 0, "no child");
        void *p = take(2000);
        int status;
        check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7, "a child was harmed");
        free(p);
    }
    void *made = NULL;
    if (threaded) {
        __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
        pthread_join(worker, &made);
    }
    say("allocs", allocs);
    say("worker", (unsigned long)made);
    say("left", BLOCKS);
}
