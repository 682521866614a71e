// Steps as in attached.c: n a new block of 48 bytes, a an array of 640, d deletes all.
#include "say.h"
#include <vector>

struct Block {
    char bytes[48];
};

int main() {
    std::vector<Block *> blocks;
    blocks.reserve(100);
    char *array = nullptr;
    char byte;
    for (;;) {
        if (write(1, ".", 1) != 1) return 1;
        if (read(0, &byte, 1) != 1) return 0;
        if (byte == 'n') blocks.push_back(new Block); // LINE one
        if (byte == 'a') array = new char[640]; // LINE array
        if (byte == 'd') {
            delete[] array;
            for (Block *block : blocks) delete block;
            blocks.clear();
        }
    }
}
