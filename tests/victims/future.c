/* A program with the functions by which a CPython is known, of a version that is not there yet. */
#include <stdio.h>
#include <stdlib.h>

struct built_in {
    const char *name;
    void *(*init)(void);
};

static void *make_nothing(void)
{
    return NULL;
}

static struct built_in modules[] = {{"_thread", make_nothing}, {NULL, NULL}};
struct built_in *PyImport_Inittab = modules;

const char *Py_GetVersion(void)
{
    return "3.99.0 (main, Jan  1 2070, 00:00:00) [GCC 50.1.0]";
}

int main(void)
{
    puts(malloc(100000) ? "done" : "no memory"); /* LINE block */
    return 0;
}
