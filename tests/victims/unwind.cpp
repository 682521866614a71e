// Allocations of 7101, 7102, ... bytes under exceptions in flight, virtual calls, lambdas, and
// before main.
#include <cstdlib>
#include <functional>
#include <new>
#include <stdexcept>

#define NOINLINE __attribute__((noinline))
#define BARRIER __asm__ volatile("" ::: "memory")

static void *volatile keep[64];

NOINLINE static void grab(size_t size) {
    keep[size % 64] = std::malloc(size);
    BARRIER;
}

struct OnUnwind {
    size_t size;
    NOINLINE ~OnUnwind() {
        grab(size);
        BARRIER;
    }
};

NOINLINE static void thrower(int depth) {
    OnUnwind guard{static_cast<size_t>(7101 + depth)};
    if (depth == 0) throw std::runtime_error("on purpose");
    thrower(depth - 1);
    BARRIER;
}

struct Shape {
    virtual void make(size_t size) = 0;
    virtual ~Shape() = default;
};

struct Round final : Shape {
    NOINLINE void make(size_t size) override {
        keep[1] = ::operator new(size);
        BARRIER;
    }
};

struct BeforeMain {
    BeforeMain() { grab(7108); }
} before_main;

int main() {
    try {
        thrower(2);
    } catch (const std::exception &) {
        grab(7104);
        try {
            thrower(0);
        } catch (...) {
            grab(7105);
        }
    }
    Shape *volatile shape = new Round;
    shape->make(7106);
    std::function<void(size_t)> call = [](size_t size) { grab(size); };
    call(7107);
    BARRIER;
    return 0;
}
