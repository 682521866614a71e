// Memory that a program's own lines ask libraries for: one size each, all kept.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>
#include <cstdlib>
#include <cstring>

extern "C" __attribute__((noinline)) void *xmalloc(size_t size) {
    void *block = malloc(size);
    if (!block) abort();
    return block;
}

struct Item {
    char bytes[1000];
};

static std::vector<Item> &items = *new std::vector<Item>;
static std::map<int, Item> &sorted = *new std::map<int, Item>;
static std::unordered_map<int, Item> &hashed = *new std::unordered_map<int, Item>;
static std::string &text = *new std::string;
static std::shared_ptr<Item> &shared = *new std::shared_ptr<Item>;
static std::vector<char> &chars = *new std::vector<char>;
static char *copied, *wrapped;

static void add(int number) {
    items.push_back(Item());                                    // LINE vector
    sorted[number] = Item();                                    // LINE map
    hashed.emplace(number, Item());                             // LINE hash
}

int main() {
    for (int i = 0; i < 100; i++) add(i);
    text.append(300000, 'x');                                   // LINE string
    shared = std::make_shared<Item>();                          // LINE shared
    std::function<void()> lambda = [] { chars.resize(200000); }; // LINE lambda
    lambda();
    copied = strdup(text.c_str());                              // LINE strdup
    wrapped = static_cast<char *>(xmalloc(150000));             // LINE wrapped
    return copied && wrapped ? 0 : 1;
}
