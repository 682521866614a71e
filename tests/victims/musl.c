// A program for musl, and for a glibc that lacks late symbols. The program allocates in threads
// and children, starts programs in all ways, prints the findings, and replaces itself by echo.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void *work(void *unused) {
    for (int i = 0; i < 2000; i++)
        free(realloc(malloc(i % 500 + 1), 700));
    return unused;
}

int main(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(threads + i, NULL, work, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    void *block = NULL;
    posix_memalign(&block, 64, 100);
    free(block);
    void *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(mremap(pages, 8192, 16384, MREMAP_MAYMOVE), 16384);
    printf("break %d\n", sbrk(0) != (void *)-1);
    for (char **entry = environ; *entry != NULL; entry++)
        if (!strncmp(*entry, "HEAPLINE_ARENA", 14) || !strncmp(*entry, "HEAPLINE_TREE", 13) || !strncmp(*entry, "LD_PRELOAD", 10))
            puts(*entry);
    fflush(stdout);
    if (fork() == 0) {
        work(NULL);
        puts("forked");
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
    system("echo system");
    char line[99] = "";
    FILE *shell = popen("echo popen", "r");
    fgets(line, sizeof line, shell);
    pclose(shell);
    fputs(line, stdout);
    fflush(stdout);
    return execlp("echo", "echo", "exec", (char *)NULL);
}
