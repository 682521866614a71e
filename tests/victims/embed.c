/* A program that loads Python as a plug-in host does: the library comes by dlopen, and the
 * interpreter is begun and ended several times.
 *
 *     embed LIBRARY ROUNDS [close] [with OTHER-LIBRARY] [search]
 *
 *   close   unloads the library after each round
 *   with    begins another library's interpreter first
 *   search  looks the library up by name, in this program's RUNPATH */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct python {
    void *library;
    void (*begin)(int);
    int (*run)(const char *);
    int (*end)(void);
};

static struct python load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        puts(dlerror());
        _exit(9);
    }
    struct python python = {library, dlsym(library, "Py_InitializeEx"), dlsym(library, "PyRun_SimpleString"),
                            dlsym(library, "Py_FinalizeEx")};
    return python;
}

static void run(struct python *python, const char *text)
{
    if (python->run(text))
        _exit(8);
}

int main(int count, char **words)
{
    int rounds = atoi(words[2]), closes = 0;
    struct python other = {0};
    for (int i = 3; i < count; i++) {
        if (!strcmp(words[i], "close"))
            closes = 1;
        if (!strcmp(words[i], "with")) {
            other = load(words[i + 1]);
            other.begin(0);
            run(&other, "kept = bytearray(700_000)\n");
        }
    }
    struct python python = {0};
    for (int round = 0; round < rounds; round++) {
        if (!python.library)
            python = load(words[1]);
        python.begin(0);
        run(&python, "def hold(n):\n    return [bytes(1000) for _ in range(n)]\nkept = hold(3000)\n");
        if (round == rounds - 1)
            break;
        python.end();
        if (closes) {
            dlclose(python.library);
            python.library = 0;
            /* The collector must not look for Python's frames any more. */
            for (int i = 0; i < 1000; i++)
                free(malloc(100 + i));
        }
    }
    puts("done");
    fflush(stdout);
    _Exit(0);
}
