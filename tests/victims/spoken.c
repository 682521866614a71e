// A program that calls Heapline (heapline.h). Each byte of standard input is a step; the program
// answers with a byte when the step is done. With -DPLUGIN the source is a library that calls too.
//
//   t  tracks three blocks of 100, 200 and 300 bytes in the pool "pages", at fixed places
//   u  untracks the first
//   r  tracks the second again, now of 2,000 bytes
//   M  reserves a range of 1 MiB
//   k  marks "half way"
//   p  pauses twice, allocates 7,000 bytes, reallocates the kept block, and resumes once
//   P  resumes once more, and allocates 600 bytes; frees the 7,000
//   K  allocates the kept block of 900 bytes
//   d  loads PLUGIN, whose constructor marks, and which tracks 50 bytes in the pool "plugged"
//   o  tracks a block in each of 300 pools
//   f  forks; the child tracks 40 bytes more in "pages" and exits
//   q  exits with 0; so does the end of the input
#include "heapline.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "say.h"

#ifdef PLUGIN
static char place[64];

void track_some(void) {
    heapline_mark("plugged in");
    heapline_track("plugged", place, 50); // LINE plugged
}
#else
static char arena[4096];
static void *mapped;
static void *kept, *paused, *counted;

static void tracks_all(void) {
    for (int i = 0; i < 3; i++) {
        heapline_track("pages", arena + 1000 * i, 100 * (size_t)(i + 1)); // LINE tracked
    }
}

int main(int argc, char **argv) {
    for (;;) {
        char step;
        if (write(1, ".", 1) != 1) return 1;
        if (read(0, &step, 1) != 1) return 0;
        switch (step) {
        case 't': tracks_all(); break;
        case 'u': heapline_untrack("pages", arena); break;
        case 'r': heapline_track("pages", arena + 1000, 2000); break;
        // Ranges and pools in one snapshot.
        case 'M': mapped = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); break;
        case 'k': heapline_mark("half way"); break;
        case 'K': kept = malloc(900); break;
        case 'p':
            heapline_pause();
            heapline_pause();
            paused = malloc(7000);
            kept = realloc(kept, 90000);
            heapline_resume();
            break;
        case 'P':
            heapline_resume();
            counted = malloc(600); // LINE counted
            free(paused);
            break;
        case 'd': {
            check(argc > 1, "a plugin");
            void *library = dlopen(argv[1], RTLD_NOW);
            check(library != NULL, "dlopen");
            ((void (*)(void))dlsym(library, "track_some"))();
            break;
        }
        case 'o':
            for (int i = 0; i < 300; i++) {
                char name[32];
                snprintf(name, sizeof name, "pool %d", i);
                heapline_track(name, arena + i, 8);
            }
            break;
        case 'f': {
            pid_t child = fork();
            if (child == 0) {
                heapline_track("pages", arena + 3000, 40);
                _exit(0);
            }
            check(waitpid(child, NULL, 0) == child, "a child");
            break;
        }
        default: return 0;
        }
    }
}
#endif
