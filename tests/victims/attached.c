// A program untouched before an attach. One byte on standard input is one step. The program answers
// with a byte when the step is done.
//
//   m  allocates a block of 1,000 bytes, kept
//   M  allocates a block of 700 bytes with the function found by dlsym, kept
//   f  frees both
//   p  calls PLUGIN's `grab`, block kept; loads PLUGIN at the first time
//   a  prints a line with the address of malloc in the program's own table
//   v  maps 65,536 bytes, kept
//   w  unmaps them
//   z  closes PLUGIN
//   r  reallocates a block, kept
//   x  maps the program's own file, the C library's and the loader's as data, to read and to run
//   q  exits with 0
//
// The program checks its vector registers, errno and signal mask after each wait: an attach must
// leave them alone.
#define _GNU_SOURCE
#include "say.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>

static void *mapped, *kept, *found, *plugged[16], *moved;
static int plugs;
static void *library;

static void map_as_data(const char *path) {
    int file = open(path, O_RDONLY);
    struct stat found;
    check(file >= 0 && fstat(file, &found) == 0, path);
    check(mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE, file, 0) != MAP_FAILED, "mmap to read");
    check(mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED, "mmap to run");
    check(mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE | MAP_32BIT, file, 0) != MAP_FAILED, "mmap below");
    close(file);
}

static const char *path_at(unsigned long address) {
    Dl_info found;
    check(dladdr((void *)address, &found) != 0, "dladdr");
    return found.dli_fname;
}

// A byte from standard input, with as many registers as a compiler may keep full over the wait.
static char next_byte(void) {
    char byte;
    double before[16], after[16];
    for (int i = 0; i < 16; i++) before[i] = i * 1.25 + 0.5;
    long result;
    errno = 77;
    uint64_t callee[3] = {0x1111, 0x2222, 0x3333}, callee_after[3];
    __asm__ volatile(
        "movupd 0(%[b]), %%xmm0\n movupd 16(%[b]), %%xmm1\n movupd 32(%[b]), %%xmm2\n movupd 48(%[b]), %%xmm3\n"
        "movupd 64(%[b]), %%xmm4\n movupd 80(%[b]), %%xmm5\n movupd 96(%[b]), %%xmm6\n movupd 112(%[b]), %%xmm7\n"
        "mov 0(%[c]), %%r13\n mov 8(%[c]), %%r14\n mov 16(%[c]), %%r15\n"
        "xor %%eax, %%eax\n xor %%edi, %%edi\n mov $1, %%edx\n syscall\n"
        "movupd %%xmm0, 0(%[a])\n movupd %%xmm1, 16(%[a])\n movupd %%xmm2, 32(%[a])\n movupd %%xmm3, 48(%[a])\n"
        "movupd %%xmm4, 64(%[a])\n movupd %%xmm5, 80(%[a])\n movupd %%xmm6, 96(%[a])\n movupd %%xmm7, 112(%[a])\n"
        "mov %%r13, 0(%[d])\n mov %%r14, 8(%[d])\n mov %%r15, 16(%[d])\n"
        : "=&a"(result)
        : [b] "b"(before), [a] "r"(after), [c] "r"(callee), [d] "r"(callee_after), "S"(&byte)
        : "rdi", "rdx", "rcx", "r11", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
          "memory");
    check(memcmp(before, after, sizeof before) == 0, "vector registers");
    check(memcmp(callee, callee_after, sizeof callee) == 0, "registers");
    check(errno == 77, "errno");
    sigset_t mask;
    check(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && !sigismember(&mask, SIGUSR1) && sigismember(&mask, SIGUSR2), "mask");
    if (result == 0) _exit(0);
    check(result == 1, "read");
    return byte;
}

int main(int argc, char **argv) {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    void *(*volatile own)(size_t) = malloc;
    for (;;) {
        if (write(1, ".", 1) != 1) return 1;
        switch (next_byte()) {
        case 'm':
            kept = malloc(1000); // LINE kept
            break;
        case 'M': {
            void *(*looked_up)(size_t) = (void *(*)(size_t))dlsym(RTLD_DEFAULT, "malloc");
            found = looked_up(700); // LINE found
            break;
        }
        case 'f':
            free(kept);
            free(found);
            kept = found = NULL;
            break;
        case 'r':
            moved = realloc(moved, 5000); // LINE moved
            break;
        case 'v':
            mapped = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); // LINE mapped
            check(mapped != MAP_FAILED, "mmap");
            break;
        case 'w':
            check(munmap(mapped, 65536) == 0, "munmap");
            break;
        case 'p':
            check(argc > 1, "a plugin");
            if (library == NULL) library = dlopen(argv[1], RTLD_NOW);
            check(library != NULL, "dlopen");
            plugged[plugs++ % 16] = ((void *(*)(size_t))dlsym(library, "grab"))(2000);
            break;
        case 'z':
            check(library != NULL && dlclose(library) == 0, "dlclose");
            library = NULL;
            break;
        case 'x':
            map_as_data("/proc/self/exe");
            map_as_data(path_at((unsigned long)(uintptr_t)read));
            map_as_data(path_at(getauxval(AT_BASE)));
            break;
        case 'a': {
            char line[64];
            // Through the table that the loader fills, not a copy from the start.
            int length = snprintf(line, sizeof line, "%lx\n", (unsigned long)(uintptr_t)malloc);
            check(own != NULL && write(1, line, (size_t)length) == length, "write");
            break;
        }
        case 'q':
            return 0;
        }
    }
}
