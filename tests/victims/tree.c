// MODE: makes children in one way. Each process allocates blocks of sizes used by no other process.
// The program prints nothing: the test knows the number of blocks of each size.
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { INHERITED = 100, STORM = 500, WORKERS = 6 };

static void *inherited[INHERITED];
extern char **environ;

static void take(size_t size, int count) {
    for (int i = 0; i < count; i++) check(malloc(size) != NULL, "malloc");
}

static void drop(int count) {
    for (int i = 0; i < count; i++) free(inherited[i]), inherited[i] = NULL;
}

static void wait_all(void) {
    int status;
    while (wait(&status) > 0) check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child was harmed");
}

// Child K: K blocks of the inherited are freed, K + 1 of 77 bytes are new.
static void nth(int k) {
    drop(k);
    take(77, k + 1);
    _exit(0);
}

static void storm(void) {
    for (int k = 0; k < STORM; k++) {
        pid_t pid = fork();
        check(pid >= 0, "fork");
        if (pid == 0) nth(k % INHERITED);
    }
    wait_all();
}

// A child, its child and the child of that: each frees ten and takes ten of its own.
static void nested(int depth) {
    if (depth == 3) return;
    pid_t pid = fork();
    check(pid >= 0, "fork");
    if (pid > 0) {
        int status;
        check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child was harmed");
        return;
    }
    for (int i = 0; i < 10; i++) free(inherited[depth * 10 + i]);
    take(201 + (size_t)depth, 10);
    nested(depth + 1);
    _exit(0);
}

// A child that forks before it has done anything else, by fork and by a raw clone.
static void at_once(void) {
    pid_t pid = fork();
    if (pid == 0) {
        if (fork() == 0) nth(5);
        wait_all();
        if (syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL) == 0) nth(6);
        wait_all();
        _exit(0);
    }
    wait_all();
}

static volatile int stop;

static void *churn(void *unused) {
    (void)unused;
    void *held[16] = {0};
    for (unsigned long i = 0; !stop; i++) {
        free(held[i % 16]);
        held[i % 16] = malloc(444 + i % 3);
    }
    for (int i = 0; i < 16; i++) free(held[i]);
    return NULL;
}

static void threads(void) {
    pthread_t ids[3];
    for (int i = 0; i < 3; i++) check(pthread_create(&ids[i], NULL, churn, NULL) == 0, "pthread_create");
    for (int k = 0; k < 20; k++) {
        pid_t pid = fork();
        if (pid == 0) nth(k);
        check(pid > 0, "fork");
        usleep(1000);
    }
    wait_all();
    stop = 1;
    for (int i = 0; i < 3; i++) pthread_join(ids[i], NULL);
}

// A server that forks its workers first; each serves until its socket is closed.
static void server(void) {
    int sockets[2];
    check(socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets) == 0, "socketpair");
    for (int k = 0; k < WORKERS; k++) {
        if (fork() > 0) continue;
        char request;
        for (int i = 0;; i++) {
            check(read(sockets[1], &request, 1) == 1, "read");
            if (request == 'q') _exit(0);
            take(301, 1);
        }
    }
    for (int i = 0; i < 600; i++) check(write(sockets[0], "x", 1) == 1, "write");
    for (int i = 0; i < WORKERS; i++) check(write(sockets[0], "q", 1) == 1, "write");
    wait_all();
}

static void killed(void) {
    pid_t pid = fork();
    if (pid == 0) {
        drop(30);
        take(501, 9);
        // As soon as the last is taken.
        kill(getpid(), SIGKILL);
    }
    int status;
    check(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status), "it was to be killed");
}

static void closed(void) {
    if (fork() == 0) {
        take(601, 3);
        closefrom(0);
        take(601, 4);
        _exit(0);
    }
    wait_all();
}

static void unreachable(void) {
    if (fork() == 0) {
        check(unshare(CLONE_NEWNET) == 0, "unshare");
        take(701, 5);
        _exit(0);
    }
    wait_all();
}

// A child takes a block, and waits for the end of standard input.
static void waiting(void) {
    if (fork() == 0) {
        take(77, 1);
        char byte;
        while (read(0, &byte, 1) > 0) {}
        _exit(0);
    }
    wait_all();
}

static void spawned(char *const argv[], int how) {
    pid_t pid = -1;
    if (how == 0) {
        check(posix_spawn(&pid, argv[0], NULL, NULL, argv, environ) == 0, "posix_spawn");
    } else if (how == 1) {
        char *const other[] = {"A=1", NULL};
        check(posix_spawnp(&pid, argv[0], NULL, NULL, argv, other) == 0, "posix_spawnp");
    } else if (how == 2) {
        pid = vfork();
        if (pid == 0) {
            execv(argv[0], argv);
            _exit(1);
        }
    } else if (how == 3) {
        pid = fork();
        if (pid == 0) {
            execv(argv[0], argv);
            _exit(1);
        }
    } else {
        pid = fork();
        if (pid == 0) {
            take(801, 7);
            execv(argv[0], argv);
            _exit(1);
        }
    }
    check(pid > 0, "no child");
    wait_all();
}

// Returns once the daemon is there.
static void daemonized(void) {
    int pipes[2];
    char byte;
    check(pipe(pipes) == 0, "pipe");
    if (fork() > 0) {
        check(read(pipes[0], &byte, 1) == 1, "read");
        return;
    }
    take(901, 2);
    setsid();
    if (fork() > 0) _exit(0);
    take(902, 3);
    int fd = open("/dev/null", O_RDWR);
    dup2(fd, 0), dup2(fd, 1), dup2(fd, 2);
    check(write(pipes[1], "x", 1) == 1, "write");
    sleep(30);
    _exit(0);
}

int main(int argc, char **argv) {
    check(argc >= 2, "usage: tree MODE [ARGS]");
    const char *mode = argv[1];
    for (int i = 0; i < INHERITED; i++) inherited[i] = malloc(1000);
    if (strcmp(mode, "storm") == 0) storm();
    else if (strcmp(mode, "nested") == 0) nested(0);
    else if (strcmp(mode, "at-once") == 0) at_once();
    else if (strcmp(mode, "waiting") == 0) waiting();
    else if (strcmp(mode, "threads") == 0) threads();
    else if (strcmp(mode, "server") == 0) server();
    else if (strcmp(mode, "killed") == 0) killed();
    else if (strcmp(mode, "closed") == 0) closed();
    else if (strcmp(mode, "unreachable") == 0) unreachable();
    else if (strcmp(mode, "daemon") == 0) daemonized();
    else if (strcmp(mode, "spawn") == 0) for (int how = 0; how < 5; how++) spawned(argv + 2, how);
    else if (strcmp(mode, "system") == 0) check(system(argv[2]) == 0, "system");
    else if (strcmp(mode, "popen") == 0) {
        FILE *pipe = popen(argv[2], "r");
        char line[256];
        while (fgets(line, sizeof line, pipe)) check(write(1, line, strlen(line)) > 0, "write");
        check(pclose(pipe) == 0, "pclose");
    } else check(0, "unknown mode");
    return 0;
}
