// MODE: maps, cuts, moves and reserves known numbers of pages, and says what must be live.
#define _GNU_SOURCE
#include "say.h"
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096ul

static char *map(char *at, size_t pages, int protection, int flags) {
    char *mapped = mmap(at, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0); // LINE map
    check(mapped != MAP_FAILED, "mmap");
    return mapped;
}

static char *overlay(char *at, size_t pages, int protection) {
    char *mapped = mmap(at, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); // LINE overlay
    check(mapped == at, "mmap over it");
    return mapped;
}

static void unmap(char *at, size_t pages) { check(munmap(at, pages * PAGE) == 0, "munmap"); }

// One range of 10 pages, less 2 in its middle, 3 of them mapped anew: 2 + 3 + 3 pages.
static void split(void) {
    char *range = map(NULL, 10, PROT_READ | PROT_WRITE, 0);
    unmap(range + 3 * PAGE, 2);
    overlay(range, 1, PROT_READ);
    overlay(range + 5 * PAGE, 2, PROT_READ | PROT_WRITE);
    say("pages", 8), say("ranges", 4), say("allocs", 3), say("frees", 3), say("asked", 13);
    say("map_pages", 5), say("map_ranges", 2), say("overlay_pages", 3), say("overlay_ranges", 2);
}

// Bytes are rounded up to pages. A file's mapping is like any other. A second munmap finds nothing.
static void sizes(void) {
    char *range = mmap(NULL, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(range != MAP_FAILED, "mmap of a byte");
    char *file = mmap64(NULL, PAGE + 1, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(file != MAP_FAILED, "mmap64");
    unmap(file, 2);
    unmap(file, 2);
    say("pages", 1), say("ranges", 1), say("allocs", 2), say("frees", 1), say("asked", 3), say("untracked", 1);
}

// What fails changes nothing, and its errno comes through.
static void failures(void) {
    char *range = map(NULL, 4, PROT_READ | PROT_WRITE, 0);
    errno = 0;
    check(munmap(range + 1, PAGE) == -1 && errno == EINVAL, "munmap inside a page");
    check(munmap(range, 0) == -1 && errno == EINVAL, "munmap of nothing");
    check(munmap(range, SIZE_MAX - PAGE) == -1 && errno == EINVAL, "munmap of everything");
    errno = 0;
    check(mmap(NULL, 1ul << 60, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM, "mmap of everything");
    check(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL, "mmap of nothing");
    check(mmap(range, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST, "mmap over it");
    check(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0) == MAP_FAILED && errno == EBADF, "mmap of no file");
    errno = 0;
    check(mremap(range, 4 * PAGE, 1ul << 46, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM, "mremap to everything");
    check(mremap(range, 4 * PAGE, 0, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL, "mremap to nothing");
    check(mprotect(range + 1, PAGE, PROT_NONE) == -1 && errno == EINVAL, "mprotect inside a page");
    errno = 0;
    check(sbrk(INTPTR_MAX / 2) == (void *)-1 && errno == ENOMEM, "sbrk of everything");
    range[3 * PAGE] = 1;
    say("pages", 4), say("ranges", 1), say("allocs", 1), say("frees", 0), say("asked", 4);
}

// Grown in place and elsewhere, shrunk, moved onto another, doubled.
static void moves(void) {
    char *room = map(NULL, 20, PROT_READ | PROT_WRITE, 0); // 20 asked for
    unmap(room + 2 * PAGE, 18);                            // a free: 2 left, and room behind
    check(mremap(room, 2 * PAGE, 5 * PAGE, 0) == room, "grown in place"); // LINE grow
    room[4 * PAGE] = 1;
    check(mremap(room, 5 * PAGE, 4 * PAGE, 0) == room, "shrunk"); // a free: 2 and 2 left
    char *other = map(NULL, 6, PROT_READ | PROT_WRITE, 0);        // 6 more
    char *moved = mremap(room, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other + PAGE);
    check(moved == other + PAGE, "moved over another");           // a free: 1, 2, 2, 1
    char *far = mremap(other, PAGE, 100 * PAGE, MREMAP_MAYMOVE);  // 1 and 99 more, elsewhere: 2, 2, 1 and 1, 99
    check(far != MAP_FAILED && far != other, "grown elsewhere");
    char *twin = mremap(far, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL); // another 1
    check(twin != MAP_FAILED && twin != far, "moved, and the old place kept");
    far[0] = twin[0] = 1;
    say("pages", 106), say("ranges", 6), say("allocs", 5), say("frees", 3), say("asked", 129);
    say("grow_pages", 2), say("grow_ranges", 1);
}

// 100 pages reserved; 10 made usable, of which 4 are given up again; 5 mapped over.
static void reserved(void) {
    char *range = map(NULL, 100, PROT_NONE, MAP_NORESERVE);
    check(mprotect(range + 10 * PAGE, 10 * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect"); // LINE commit
    range[10 * PAGE] = range[19 * PAGE] = 1;
    check(mprotect(range + 10 * PAGE, 10 * PAGE, PROT_READ) == 0, "mprotect"); // changes nothing here
    check(mprotect(range + 12 * PAGE, 4 * PAGE, PROT_NONE) == 0, "mprotect");  // LINE decommit
    overlay(range + 50 * PAGE, 5, PROT_READ | PROT_WRITE);
    check(pkey_mprotect(range + 60 * PAGE, PAGE, PROT_READ, -1) == 0, "pkey_mprotect");
    say("pages", 12), say("ranges", 4), say("allocs", 3), say("frees", 1), say("asked", 16);
    say("reserved_pages", 88), say("reserved_ranges", 5), say("reserved_allocs", 2), say("reserved_frees", 3);
    say("commit_pages", 6), say("commit_ranges", 2), say("decommit_pages", 4);
}

// The break: whole pages come and go at its end.
static void program_break(void) {
    char *first = sbrk(0);
    check(brk((char *)(((uintptr_t)first + PAGE - 1) & -PAGE)) == 0, "brk to a page");
    char *start = sbrk(3 * PAGE); // LINE sbrk
    check(start != (void *)-1, "sbrk");
    check(sbrk(100) == start + 3 * PAGE, "sbrk of a part of a page"); // a page
    check(sbrk(200) == start + 3 * PAGE + 100, "sbrk inside the page"); // nothing
    check(brk(start + 10 * PAGE) == 0, "brk");                          // 6 more
    check(sbrk(-(intptr_t)(2 * PAGE)) == start + 10 * PAGE, "sbrk back"); // a free: 4 left of them
    check(brk(start + 7 * PAGE + 1) == 0, "brk back inside a page");      // nothing
    start[7 * PAGE] = 1;
    say("pages", 8), say("ranges", 3), say("allocs", 3), say("frees", 1), say("asked", 10);
    say("sbrk_pages", 3), say("sbrk_ranges", 1);
}

// Steps by the byte, for who asks meanwhile.
static void step(void) {
    char byte;
    check(read(0, &byte, 1) == 1, "a byte to go on");
}

static void steps(void) {
    char *kept = map(NULL, 3, PROT_READ | PROT_WRITE, 0), *moving = map(NULL, 50, PROT_NONE, 0);
    say("kept", (unsigned long)kept), say("moving", (unsigned long)moving);
    step();
    char *moved = mremap(moving, 50 * PAGE, 70 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moving - 200 * PAGE);
    check(moved == moving - 200 * PAGE, "moved");
    unmap(kept + PAGE, 1);
    say("moved", (unsigned long)moved);
    step();
    unmap(kept, 1);
    overlay(moved + 10 * PAGE, 5, PROT_READ);
    say("done", 1);
    step();
}

#ifdef EARLY
// As a library whose constructor comes before the program's, and before the collector's.
static void __attribute__((constructor)) early(void) { failures(), split(), moves(), reserved(), program_break(); }
#endif

int main(int argc, char **argv) {
    check(argc == 2, "usage: mappings MODE");
    struct { const char *name; void (*run)(void); } modes[] = {
        {"split", split}, {"sizes", sizes}, {"failures", failures},
        {"moves", moves}, {"reserved", reserved}, {"break", program_break},
        {"steps", steps},
    };
    for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++)
        if (strcmp(argv[1], modes[i].name) == 0) {
            modes[i].run();
            return 0;
        }
    check(0, "no such mode");
}
