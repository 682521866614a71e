// Functions that share file, line and caller: instances of a template, called by one line.
#include <cstdlib>

template <int N> __attribute__((noinline)) void keep() { static void *block; block = malloc(N); asm volatile("" ::"r"(&block) : "memory"); } // LINE keep

template <int... N> __attribute__((noinline)) void all() { (keep<N>(), ...); } // LINE all

int main() { all<10000, 20000, 40000>(); }
