// Templates, namespaces and the library's inlined allocators.
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace shop {

template <typename T> class Shelf {
  public:
    void put(const T &item) { items.push_back(item); }
    std::size_t count() const { return items.size(); }

  private:
    std::vector<T> items;
};

__attribute__((noinline)) std::map<int, std::string> *index(int n) {
    auto *names = new std::map<int, std::string>;
    for (int i = 0; i < n; i++) {
        (*names)[i] = std::string(static_cast<std::size_t>(i) + 40, 'x');
    }
    return names;
}

} // namespace shop

int main(int argc, char **) {
    shop::Shelf<std::string> shelf;
    shelf.put("a string that does not fit into itself, so that it allocates");
    auto numbers = std::make_unique<int[]>(static_cast<std::size_t>(argc) * 10);
    auto *names = shop::index(argc);
    std::size_t sum = shelf.count() + names->size() + static_cast<std::size_t>(numbers[0]);
    delete names;
    return static_cast<int>(sum) - 2;
}
