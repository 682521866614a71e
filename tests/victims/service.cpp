// A service that keeps most of its memory at one line, which the argument chooses.
#include <algorithm>
#include <any>
#include <cstdlib>
#include <deque>
#include <functional>
#include <future>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

struct Item {
    char bytes[1000];
};

static std::string_view kind;

static bool is(std::string_view name) { return kind == name; }

// Never freed: the memory is live when the program ends.
template <typename T> static T &kept() {
    static T &object = *new T;
    return object;
}

static void request(int number) {
    Item item = {};
    auto &texts = kept<std::vector<std::string>>();
    if (is("push_back")) kept<std::vector<Item>>().push_back(item);                                  // LINE push_back
    if (is("emplace_back")) texts.emplace_back(5000, 'x');                                           // LINE emplace_back
    if (is("string")) kept<std::string>() += std::string(5000, 'x');                                 // LINE string
    if (is("map")) kept<std::map<int, Item>>()[number] = item;                                       // LINE map
    if (is("hash")) kept<std::unordered_map<std::string, Item>>()[std::to_string(number)] = item;    // LINE hash
    if (is("map of vectors")) kept<std::map<int, std::vector<int>>>()[number].resize(300);           // LINE map of vectors
    if (is("set")) kept<std::set<std::string>>().insert(std::to_string(number) + std::string(900, 'a')); // LINE set
    if (is("list")) kept<std::list<Item>>().push_back(item);                                         // LINE list
    if (is("deque")) kept<std::deque<Item>>().push_back(item);                                       // LINE deque
    if (is("shared_ptr")) kept<std::vector<std::shared_ptr<Item>>>().push_back(std::make_shared<Item>()); // LINE shared_ptr
    if (is("unique_ptr")) kept<std::vector<std::unique_ptr<Item>>>().push_back(std::make_unique<Item>()); // LINE unique_ptr
    if (is("function")) kept<std::vector<std::function<char()>>>().push_back([item] { return item.bytes[0]; }); // LINE function
    if (is("async")) kept<std::vector<std::future<char>>>().push_back(std::async(std::launch::deferred, [item] { return item.bytes[0]; })); // LINE async
    if (is("any")) kept<std::vector<std::any>>().push_back(item);                                    // LINE any
    if (is("stream")) kept<std::ostringstream>() << std::string(3000, 'x');                          // LINE stream
    if (is("lambda")) std::for_each(item.bytes, item.bytes + 10, [&](char) { texts.push_back(std::string(500, 'x')); }); // LINE lambda
    if (is("thread")) std::thread([&] { texts.push_back(std::string(5000, 'x')); }).join();          // LINE thread
    if (is("copy")) std::copy_n(item.bytes, 1000, std::back_inserter(kept<std::vector<int>>()));     // LINE copy
    if (is("queue")) kept<std::queue<std::optional<Item>>>().push(item);                             // LINE queue
    if (is("variant")) kept<std::vector<std::variant<int, std::string>>>().push_back(std::string(3000, 'x')); // LINE variant
}

// Memory of a moment: the peak is at this line, and nothing stays.
static void sort() {
    std::vector<Item> &items = kept<std::vector<Item>>();
    items.reserve(10);
    items.resize(10);
    for (int round = 0; round < 3; round++) {
        std::vector<Item> many(400);                                                                 // LINE many
        std::stable_sort(many.begin(), many.end(), [](const Item &a, const Item &b) { return a.bytes[0] < b.bytes[0]; }); // LINE stable_sort
    }
}

int main(int argc, char **argv) {
    kind = argv[argc - 1];
    if (is("stable_sort")) sort();
    for (int number = 0; number < 200; number++) request(number);
    return 0;
}
