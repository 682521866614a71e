// Random call trees with everything that moves a stack in an unusual way. Every event has a
// different stack.
//
//     trees EVENTS THREADS PLUGIN
//
// Each thread makes EVENTS allocations and frees, under frames of many sizes, alloca, variable
// arrays, equal frames in a row, tail calls, code without unwind information, exceptions, longjmp,
// coroutines on stacks that come and go, signal handlers on a separate stack, and code of a library
// that is closed and loaded again.
#include "say.h"
#include <alloca.h>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>

#define NOINLINE __attribute__((noinline))
#define KEEP __asm__ volatile("" ::: "memory")

namespace {

struct Coroutine {
    ucontext_t context;
    void *stack;
    int depth;
    bool done;
};

struct State {
    uint64_t numbers;
    long left;
    void *blocks[64];
    void *plugin;
    void *(*grab)(size_t);
    ucontext_t *resumer;
    Coroutine *running;
};

thread_local State *state;
const char *plugin_path;
pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
constexpr size_t stack_bytes = 128 << 10;

uint64_t number() {
    uint64_t &s = state->numbers;
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    return s >> 11;
}

NOINLINE void event() {
    void *&block = state->blocks[number() % 64];
    state->left--;
    switch (number() % 4) {
    case 0: block = realloc(block, 1 + number() % 200); break;
    case 1: free(block), block = calloc(1, 1 + number() % 200); break;
    default: free(block), block = malloc(1 + number() % 200);
    }
    KEEP;
}

NOINLINE void walk(int depth);

template <int SIZE> NOINLINE void framed(int depth) {
    volatile char room[SIZE];
    room[0] = 1, room[SIZE - 1] = 2;
    walk(depth - 1);
    if (number() % 2) event();
    KEEP;
}

NOINLINE void variable(int depth) {
    size_t n = 1 + number() % 3000;
    volatile char *room = static_cast<char *>(alloca(n));
    room[0] = 1, room[n - 1] = 2;
    walk(depth - 1);
    volatile char more[1 + number() % 500];
    more[0] = 3;
    event();
    KEEP;
}

// Two call sites and equal frames: two stacks differ only by one return address in the middle.
NOINLINE void equal(int depth, uint64_t bits, int levels) {
    if (levels == 0) {
        event();
        if (depth > 0) walk(depth - 1);
    } else if (bits & 1) {
        equal(depth, bits >> 1, levels - 1);
        KEEP;
    } else {
        equal(depth, bits >> 1, levels - 1);
        KEEP;
    }
    KEEP;
}

NOINLINE void tail(int depth) {
    event();
    return walk(depth - 1); // A jump from -O2 on.
}

extern "C" void without_unwind_information(void (*)(int), int);
__asm__(".text\n.type without_unwind_information,@function\n"
        "without_unwind_information:\n sub $40, %rsp\n mov %rdi, %rax\n mov %esi, %edi\n call *%rax\n add $40, %rsp\n ret\n"
        ".size without_unwind_information, . - without_unwind_information\n");

struct OnUnwind {
    ~OnUnwind() { event(); }
};

NOINLINE void thrower(int depth) {
    OnUnwind guard;
    walk(depth - 1);
    if (number() % 2) throw depth;
}

NOINLINE void catcher(int depth) {
    try {
        thrower(depth);
    } catch (int) {
        event();
        walk(depth - 2);
    }
}

// Leaves frames for good that the kept stack still holds.
NOINLINE void jumped(int depth) {
    jmp_buf out;
    if (setjmp(out) == 0) {
        struct Jump {
            NOINLINE static void away(jmp_buf &out, int levels) {
                volatile char room[48];
                room[0] = static_cast<char>(levels);
                event();
                if (levels <= 0 || state->left < -1000) longjmp(out, 1);
                away(out, levels - 1);
                KEEP;
            }
        };
        Jump::away(out, static_cast<int>(number() % 6));
    }
    event();
    walk(depth - 1);
    KEEP;
}

void yield() {
    if (Coroutine *self = state->running) swapcontext(&self->context, state->resumer);
}

void body() {
    Coroutine *self = state->running;
    walk(self->depth);
    event();
    self->done = true;
    yield();
}

// Two coroutines by turns, on stacks that other mappings may have had before.
NOINLINE void coroutines(int depth) {
    Coroutine *outer = state->running;
    ucontext_t *outer_resumer = state->resumer;
    Coroutine both[2];
    for (Coroutine &one : both) {
        one.stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(one.stack != MAP_FAILED, "mmap");
        one.depth = depth - 1, one.done = false;
        getcontext(&one.context);
        one.context.uc_stack.ss_sp = one.stack, one.context.uc_stack.ss_size = stack_bytes;
        one.context.uc_link = nullptr;
        makecontext(&one.context, body, 0);
    }
    ucontext_t here;
    while (!both[0].done || !both[1].done) {
        for (Coroutine &one : both) {
            if (one.done) continue;
            state->running = &one, state->resumer = &here;
            swapcontext(&here, &one.context);
            state->running = outer, state->resumer = outer_resumer;
            event();
        }
    }
    for (Coroutine &one : both) munmap(one.stack, stack_bytes);
}

void handler(int) {
    event();
    equal(0, number(), 3);
}

NOINLINE void signalled(int depth) {
    raise(SIGUSR1);
    walk(depth - 1);
    KEEP;
}

// Another thread's library stays loaded meanwhile, so the address is often, not always, the same.
NOINLINE void reloaded(int depth) {
    pthread_mutex_lock(&loading);
    if (state->plugin) dlclose(state->plugin);
    state->plugin = dlopen(plugin_path, RTLD_NOW);
    check(state->plugin != nullptr, "dlopen");
    state->grab = reinterpret_cast<void *(*)(size_t)>(dlsym(state->plugin, "grab"));
    free(state->grab(number() % 100));
    pthread_mutex_unlock(&loading);
    walk(depth - 1);
}

NOINLINE void walk(int depth) {
    if (state->left <= 0) return;
    if (depth <= 0) {
        event();
        return;
    }
    event();
    yield();
    switch (number() % 24) {
    case 0: case 1: framed<16>(depth); break;
    case 2: case 3: framed<24>(depth); break;
    case 4: framed<400>(depth); break;
    case 5: framed<5000>(depth); break;
    case 6: case 7: variable(depth); break;
    case 8: case 9: case 10: equal(depth, number(), 8); break;
    case 11: case 12: tail(depth); break;
    case 13: without_unwind_information(walk, depth - 1); break;
    case 14: case 15: catcher(depth); break;
    case 16: case 17: jumped(depth); break;
    case 18: state->running ? framed<32>(depth) : coroutines(depth); break;
    case 19: signalled(depth); break;
    case 20: number() % 16 ? framed<64>(depth) : reloaded(depth); break;
    default:
        walk(depth - 1);
        walk(depth - 2);
    }
    KEEP;
}

long events;

void *thread(void *seed) {
    static thread_local State mine;
    state = &mine;
    mine.numbers = 0x9E3779B97F4A7C15ull * (reinterpret_cast<uintptr_t>(seed) + 1);
    mine.left = events;
    char *aside = static_cast<char *>(mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    stack_t alternate = {};
    alternate.ss_sp = aside, alternate.ss_size = stack_bytes;
    sigaltstack(&alternate, nullptr);
    while (mine.left > 0) walk(static_cast<int>(number() % 40));
    return nullptr;
}

} // namespace

int main(int, char **arguments) {
    events = atol(arguments[1]);
    long threads = atol(arguments[2]);
    plugin_path = arguments[3];
    struct sigaction action = {};
    action.sa_handler = handler;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaction(SIGUSR1, &action, nullptr);
    pthread_t others[64];
    for (long i = 1; i < threads; i++) pthread_create(&others[i], nullptr, thread, reinterpret_cast<void *>(i));
    thread(nullptr);
    for (long i = 1; i < threads; i++) pthread_join(others[i], nullptr);
    return 0;
}
