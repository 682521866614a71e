/* Calls of Heapline from within a program: marks, pools of its own, pauses. C and C++.
 *
 *     #include "heapline.h"
 *
 *     heapline_mark("deploy 42");                    // report --at mark:"deploy 42"
 *     heapline_track("pages", page, page_bytes);     // report --domain pool:pages
 *     heapline_untrack("pages", page);
 *     heapline_pause();                              // what this thread allocates does not count
 *     heapline_resume();
 *
 * Where nobody traces the program, each call is one load and one branch. No library is needed, at
 * link time or at run time. Every executable and every library has a word of its own, which
 * Heapline fills when it traces the process, and clears when it leaves.
 *
 * Requires Linux with the GNU assembler's directives (gcc, clang). Elsewhere, and with
 * HEAPLINE_OFF defined, the functions are empty. An object without debug information and without
 * symbols works too: strip keeps the note that names the word.
 */
#ifndef HEAPLINE_H
#define HEAPLINE_H

#include <stddef.h>

#if defined(__linux__) && defined(__ELF__) && defined(__LP64__) && !defined(HEAPLINE_OFF)

#ifdef __cplusplus
extern "C" {
#endif

/* The functions of the collector. A text is bytes with a length. */
struct heapline_functions {
    unsigned long long version;
    void (*mark)(const char *text, size_t bytes);
    void (*track)(const char *pool, size_t bytes, const void *address, size_t size);
    void (*untrack)(const char *pool, size_t bytes, const void *address);
    void (*pause)(void);
    void (*resume)(void);
};

/* The word of this executable or library; null where nobody traces. */
__attribute__((weak, visibility("hidden"))) const struct heapline_functions *heapline_functions_;

/* The note that names the word: the distance from the note's content to the word. Each object file
 * has a note, and all name the same word. */
__asm__(
    ".pushsection .note.heapline.calls,\"a\",%note\n"
    ".balign 4\n"
    ".long 9\n"
    ".long 8\n"
    ".long 2\n"
    ".asciz \"Heapline\"\n"
    ".balign 4\n"
    "0: .quad heapline_functions_ - 0b\n"
    ".popsection\n");

static inline const struct heapline_functions *heapline_functions(void)
{
    return __atomic_load_n(&heapline_functions_, __ATOMIC_ACQUIRE);
}

/* Puts a mark into the history. At most 256 bytes of the text are kept. */
static inline void heapline_mark(const char *text)
{
    const struct heapline_functions *functions = heapline_functions();
    if (__builtin_expect(functions != NULL, 0))
        functions->mark(text, __builtin_strlen(text));
}

/* Records a block that the program has taken from a pool of its own. The pool is a domain of its
 * own, pool:NAME, with at most 64 bytes of the name. A second block at the same address of the pool
 * takes the place of the first. */
static inline void heapline_track(const char *pool, const void *address, size_t size)
{
    const struct heapline_functions *functions = heapline_functions();
    if (__builtin_expect(functions != NULL, 0))
        functions->track(pool, __builtin_strlen(pool), address, size);
}

/* Records that a block of the pool is given back. */
static inline void heapline_untrack(const char *pool, const void *address)
{
    const struct heapline_functions *functions = heapline_functions();
    if (__builtin_expect(functions != NULL, 0))
        functions->untrack(pool, __builtin_strlen(pool), address);
}

/* Lets the allocations of the calling thread count no more, until heapline_resume() has been called
 * as often. Frees still count. */
static inline void heapline_pause(void)
{
    const struct heapline_functions *functions = heapline_functions();
    if (__builtin_expect(functions != NULL, 0))
        functions->pause();
}

/* Ends a pause. */
static inline void heapline_resume(void)
{
    const struct heapline_functions *functions = heapline_functions();
    if (__builtin_expect(functions != NULL, 0))
        functions->resume();
}

#ifdef __cplusplus
}
#endif

#else

static inline void heapline_mark(const char *text) { (void)text; }
static inline void heapline_track(const char *pool, const void *address, size_t size)
{
    (void)pool, (void)address, (void)size;
}
static inline void heapline_untrack(const char *pool, const void *address) { (void)pool, (void)address; }
static inline void heapline_pause(void) {}
static inline void heapline_resume(void) {}

#endif
#endif
