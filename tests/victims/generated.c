// map|rude|pipe|dump: code made at run time, without unwind tables, but with frame pointers. Two
// pieces of such code, `jit_outer` and `jit_inner`, are on the stack of a block of 4,001 bytes:
//
//   main -> jit_outer -> between -> jit_inner -> keep -> malloc
//
// map writes /tmp/perf-PID.map with their names, rude writes it with names that command a terminal,
// pipe makes it a pipe without a writer, and dump writes jit-PID.dump in the current folder as
// perf's jitdump says, and maps it. One byte on standard input is one step, and the program answers
// with a byte when the step is done:
//
//   k  keeps a block of 4,001 bytes
#include "say.h"
#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

typedef void function(void);
typedef void stub(function *);

// push rbp; mov rbp, rsp; call rdi; pop rbp; ret
static const unsigned char CODE[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};
enum { DISTANCE = 64 };

static void *volatile kept;
static stub *outer, *inner;

__attribute__((noinline)) static void keep(void) {
    kept = malloc(4001); // LINE keep
    check(kept != NULL, "malloc");
}

__attribute__((noinline)) static void between(void) {
    inner(keep); // LINE between
    __asm__ volatile("" ::: "memory");
}

static void write_all(int file, const void *bytes, size_t size) {
    check(write(file, bytes, size) == (ssize_t)size, "write");
}

static void write_map(const char *kind) {
    char path[64], line[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
    if (strcmp(kind, "pipe") == 0) {
        check(mkfifo(path, 0600) == 0, path);
        return;
    }
    int file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    check(file >= 0, path);
    stub *stubs[] = {outer, inner};
    const char *polite[] = {"jit_outer orders.js:12", "jit_inner orders.js:7"};
    const char *rude[] = {"jit_outer\033[31m\302\2332J", "jit_inner\rheapline: 0 B"};
    const char **names = strcmp(kind, "rude") == 0 ? rude : polite;
    for (int i = 0; i < 2; i++) {
        int length = snprintf(line, sizeof line, "%lx %zx %s\n", (unsigned long)(uintptr_t)stubs[i], sizeof CODE, names[i]);
        write_all(file, line, (size_t)length);
    }
    close(file);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void write_load(int file, stub *code, const char *name, uint64_t index) {
    uint64_t at = (uint64_t)(uintptr_t)code;
    struct {
        uint32_t id, total_size;
        uint64_t timestamp;
        uint32_t pid, tid;
        uint64_t vma, code_addr, code_size, code_index;
    } load = {0, 0, now(), (uint32_t)getpid(), (uint32_t)getpid(), at, at, sizeof CODE, index};
    load.total_size = (uint32_t)(sizeof load + strlen(name) + 1 + sizeof CODE);
    write_all(file, &load, sizeof load);
    write_all(file, name, strlen(name) + 1);
    write_all(file, (const void *)at, sizeof CODE);
}

static void write_dump(void) {
    char path[64];
    snprintf(path, sizeof path, "jit-%d.dump", (int)getpid());
    int file = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    check(file >= 0, path);
    struct {
        uint32_t magic, version, total_size, machine, pad, pid;
        uint64_t timestamp, flags;
    } header = {0x4A695444, 1, 40, EM_X86_64, 0, (uint32_t)getpid(), now(), 0};
    write_all(file, &header, sizeof header);
    // A profiler knows the file by this mapping.
    check(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED, "mmap of the dump");
    write_load(file, outer, "jit_outer", 0);
    write_load(file, inner, "jit_inner", 1);
    close(file);
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: generated map|rude|pipe|dump");
    unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(page != MAP_FAILED, "mmap");
    memcpy(page, CODE, sizeof CODE);
    memcpy(page + DISTANCE, CODE, sizeof CODE);
    check(mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0, "mprotect");
    outer = (stub *)(uintptr_t)page;
    inner = (stub *)(uintptr_t)(page + DISTANCE);
    if (strcmp(argv[1], "dump") == 0) write_dump();
    else write_map(argv[1]);
    char byte = '.';
    do {
        if (byte == 'k') outer(between); // LINE main
        check(write(1, ".", 1) == 1, "write");
    } while (read(0, &byte, 1) == 1);
    return 0;
}
