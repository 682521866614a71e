/* Opens a library by a bare name, which only the search path of the library that needs this one
   leads to. */
#include <dlfcn.h>
#include <stdio.h>
int path_open_below(void) {
    void *found = dlopen("libpathfound.so", RTLD_NOW);
    if (!found) puts(dlerror());
    return found == NULL;
}
