// MODE [PLUGIN]: repeats an action without end, while an aggregator may attach. A byte on standard
// input is a step. The end of standard input is the program's end.
//
//   fork     forks children, which allocate, free inherited blocks and end
//   dlopen   opens and closes PLUGIN
//   threads  starts and joins threads
#define _GNU_SOURCE
#include "say.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>

static atomic_int stop;
static const char *plugin;

static void fork_once(void) {
    void *inherited = malloc(100);
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        for (int i = 0; i < 20; i++) free(malloc(1000));
        free(inherited);
        _exit(7);
    }
    int status;
    check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7, "a child's end");
    free(inherited);
}

static void load_once(void) {
    void *library = dlopen(plugin, RTLD_NOW);
    check(library != NULL, "dlopen");
    void *block = ((void *(*)(size_t))dlsym(library, "grab"))(500);
    check(block != NULL, "grab");
    free(block);
    check(dlclose(library) == 0, "dlclose");
}

static void *brief(void *argument) {
    free(malloc(300));
    return argument;
}

static void thread_once(void) {
    pthread_t thread;
    check(pthread_create(&thread, NULL, brief, NULL) == 0 && pthread_join(thread, NULL) == 0, "a thread");
}

static void *work(void *once) {
    while (!atomic_load(&stop)) ((void (*)(void))once)();
    return NULL;
}

int main(int argc, char **argv) {
    check(argc >= 2, "usage: churning MODE [PLUGIN]");
    plugin = argc > 2 ? argv[2] : NULL;
    const char *mode = argv[1];
    void (*once)(void) = strcmp(mode, "fork") == 0 ? fork_once : strcmp(mode, "dlopen") == 0 ? load_once : thread_once;
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) check(pthread_create(&threads[i], NULL, work, (void *)once) == 0, "pthread_create");
    char byte;
    do {
        check(write(1, ".", 1) == 1, "write");
    } while (read(0, &byte, 1) == 1);
    atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    return 0;
}
