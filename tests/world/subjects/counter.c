/* A counter of the malloc family, to be preloaded: the plainest second opinion. The counts are
   in the file that HEAP_COUNT names: allocations, frees, bytes asked for. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

struct counts { atomic_ulong allocs, frees, bytes; };
static struct counts nowhere, *_Atomic counts;

static struct counts *here(void)
{
    struct counts *known = counts;
    if (known) return known;
    const char *path = getenv("HEAP_COUNT");
    int file = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    void *mapped = file < 0 || ftruncate(file, 4096)
        ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    return counts = mapped == MAP_FAILED ? &nowhere : mapped;
}

static void *allocated(void *block, size_t bytes)
{
    if (!block) return block;
    here()->allocs++;
    here()->bytes += bytes;
    return block;
}

void *malloc(size_t bytes) { return allocated(__libc_malloc(bytes), bytes); }
void *calloc(size_t n, size_t bytes) { return allocated(__libc_calloc(n, bytes), n * bytes); }
void *memalign(size_t to, size_t bytes) { return allocated(__libc_memalign(to, bytes), bytes); }
void *aligned_alloc(size_t to, size_t bytes) { return memalign(to, bytes); }

void *realloc(void *old, size_t bytes)
{
    void *block = allocated(__libc_realloc(old, bytes), bytes);
    if (old && (block || !bytes)) here()->frees++;
    return block;
}

int posix_memalign(void **block, size_t to, size_t bytes)
{
    void *made = memalign(to, bytes);
    if (!made) return ENOMEM;
    *block = made;
    return 0;
}

void free(void *block)
{
    if (block) here()->frees++;
    __libc_free(block);
}
