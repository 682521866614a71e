/* A program and a library of it that has an allocator under a prefix. The library (-DLIBRARY) takes
   its memory by mmap; the program loads it, says that it is ready, and makes a step for each byte
   that it reads: 'm' takes memory from the library's allocator, 'c' has the library call malloc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef LIBRARY
void *_rjem_mallocx(size_t size, int flags)
{
    return mmap(0, size + (size_t)flags, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
void *call_malloc(size_t size)
{
    void *volatile block = malloc(size);
    return block;
}
#else
int main(int argc, char **argv)
{
    void *library = dlopen(argv[argc - 1], RTLD_NOW);
    void *(*own)(size_t, int) = (void *(*)(size_t, int))dlsym(library, "_rjem_mallocx");
    void *(*call)(size_t) = (void *(*)(size_t))dlsym(library, "call_malloc");
    char step = '.';
    while (write(1, ".", 1) == 1 && read(0, &step, 1) == 1) {
        if (step == 'm') own(64 << 20, 0);
        if (step == 'c') call(1000);
    }
    return 0;
}
#endif
