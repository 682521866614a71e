// A C++ library that only a plug-in needs.
#include <map>
#include <string>
static std::map<std::string, int> *registry = new std::map<std::string, int>; // static
extern "C" int cxxdep_add(const char *name) {
    (*registry)[std::string(200, 'x') + name] = 1;
    int *array = new int[25]; // array
    delete[] array;
    return (int)registry->size();
}
