#include <iostream>
#include <map>
#include <regex>
#include <sstream>

int main()
{
    std::istringstream text("the cat and the dog and the bird");
    std::map<std::string, int> count;
    for (std::string word; text >> word;) count[std::regex_replace(word, std::regex("[aeiou]"), "*")]++;
    for (auto &[word, n] : count) std::cout << word << ' ' << n << '\n';
}
