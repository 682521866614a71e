/* A function whose rare case the compiler puts elsewhere: with -O2, gcc makes `exported.cold`. */
#include <stdio.h>
#include <stdlib.h>

__attribute__((cold, noinline)) static void *rare(size_t size)
{
    void *block = malloc(size);
    if (!block)
        abort();
    return block;
}

__attribute__((noinline)) int exported(int first, int second, char *text)
{
    int length = snprintf(text, 20, "%d", first);
    if (first > 1000) {
        void *block = rare((size_t)first);
        length += snprintf(text, 20, "%p %d", block, second);
    }
    return length + snprintf(text, 20, "%d", second);
}

int main(int argc, char **argv)
{
    (void)argv;
    char text[20];
    return exported(argc * 50000, argc, text) > 0 ? 0 : 1;
}
