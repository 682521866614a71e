// scale STACKS LIVE PAIRS: a live set of LIVE small blocks from STACKS distinct stacks, in phases.
//
//   define  one pair of malloc and free under each stack
//   grow    LIVE mallocs
//   churn   PAIRS times: frees a random live block, and allocates another under a random stack
//
// After each phase it says "PHASE CALLS SECONDS CPU_SECONDS" and waits for a line, so that somebody
// can look meanwhile.
//
// A stack is a path of 20 steps, each of which is one of two call sites. Its number is scattered
// over all steps: two random stacks differ in as many frames, whether there are ten or a million.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define LEVELS 20
#define MOST (1u << LEVELS)

__attribute__((noinline)) static void *make(unsigned level, uint32_t path, size_t size) {
    void *block;
    if (level == 0) {
        char *volatile made = malloc(size);
        made[0] = 1;
        return made;
    }
    // Two call sites, and no tail calls: the compiler cannot merge different texts.
    if (path & 1) {
        block = make(level - 1, path >> 1, size);
        __asm__ volatile("# one" ::: "memory");
    } else {
        block = make(level - 1, path >> 1, size);
        __asm__ volatile("# other" ::: "memory");
    }
    return block;
}

static void *under(uint32_t stack, size_t size) { return make(LEVELS, stack * 0x9E3779B1u & (MOST - 1), size); }

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state;
}

static double now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double wall, cpu;

static void begin(void) { wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID); }

static void end(const char *phase, long calls) {
    printf("%s %ld %.9f %.9f\n", phase, calls, now(CLOCK_MONOTONIC) - wall, now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    fflush(stdout);
    for (int c = getchar(); c != '\n' && c != EOF; c = getchar()) {}
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    uint32_t stacks = (uint32_t)strtoul(arguments[1], 0, 10);
    long live = atol(arguments[2]), pairs = atol(arguments[3]);
    if (stacks == 0 || stacks > MOST || live <= 0) return 2;
    setvbuf(stdin, 0, _IONBF, 0);
    void **blocks = calloc((size_t)live, sizeof *blocks), *last = 0;
    uint64_t state = 88172645463325252u;
    begin();
    end("start", 0);
    static const char *const names[] = {"define", "grow", "churn"};
    const long loops[] = {stacks, live, pairs}, calls[] = {2 * (long)stacks, live, 2 * pairs};
    // One loop for all, so that the call below is one place in all stacks.
    for (volatile int phase = 0; phase < 3; phase++) {
        begin();
        for (long i = 0, many = loops[phase]; i < many; i++) {
            uint64_t random = (uint64_t)i;
            void **place = &last;
            if (phase == 1) place = &blocks[i];
            if (phase == 2) random = next(&state), place = &blocks[(random >> 20) % (uint64_t)live];
            free(*place);
            *place = under((uint32_t)(random % stacks), 8 + (size_t)i % 17);
        }
        end(names[phase], calls[phase]);
    }
}
