// The standard library's containers: the line to blame is the one that uses them.
#include <map>
#include <memory>
#include <string>
#include <vector>

struct Node {
    long value[10];
};

// What is not kept may be optimized away.
static void *volatile keep;

int main() {
    auto *numbers = new std::vector<int>; // LINE new_vector
    keep = numbers;
    numbers->reserve(1000); // LINE vector
    auto *text = new std::string; // LINE new_string
    keep = text;
    text->append(3000, 'x'); // LINE string
    auto *map = new std::map<int, long>; // LINE new_map
    keep = map;
    for (int i = 0; i < 5; i++)
        (*map)[i] = i; // LINE map
    auto *shared = new std::shared_ptr<Node>; // LINE new_shared
    keep = shared;
    *shared = std::make_shared<Node>(); // LINE make_shared
    keep = new char[777]; // LINE array
    auto *unique = new std::unique_ptr<Node[]>(new Node[3]); // LINE unique
    keep = unique;
    keep = unique->get();
}
