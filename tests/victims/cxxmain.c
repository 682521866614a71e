/* A C program that knows nothing of C++ and opens a plug-in. */
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **arguments) {
    void *plug = dlopen(arguments[count - 1], RTLD_NOW);
    if (!plug) { puts(dlerror()); return 3; }
    int (*run)(void) = (int (*)(void))dlsym(plug, "plug_run");
    printf("run %d\n", run());
    return 0;
}
