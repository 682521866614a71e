// operator new and delete in all variants, exceptions, and a bad_alloc. No stream is used, because
// a stream would allocate.
#include "say.h"
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

struct alignas(128) Wide {
    char bytes[256];
};

static volatile size_t huge = PTRDIFF_MAX;

__attribute__((noinline)) static void fail(int depth) {
    std::vector<char> held(100 + depth);
    if (depth == 0) throw std::runtime_error(std::string(200, 'e'));
    fail(depth - 1);
}

int main(int argc, char **) {
    int *one = new int(1);
    int *many = new int[100];
    Wide *wide = new Wide;
    check(reinterpret_cast<uintptr_t>(wide) % 128 == 0, "aligned new");
    int *quiet = new (std::nothrow) int;
    int caught = 0;
    // valgrind aborts a program whose operator new cannot throw: any argument leaves this out.
    if (argc == 1) {
        check(::operator new(huge, std::nothrow) == nullptr, "a huge nothrow new");
        try {
            check(::operator new(huge) == nullptr, "a huge new");
        } catch (const std::bad_alloc &) {
            caught++;
        }
    }
    for (int i = 0; i < 50; i++) {
        try {
            fail(i % 7);
        } catch (const std::runtime_error &error) {
            caught += error.what()[0] == 'e';
        }
    }
    delete one;
    delete[] many;
    delete wide;
    (void)quiet;
    say("caught", static_cast<unsigned long>(caught));
}
