// A static launcher: runs the given program twice as a child and then in its own place.
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments) {
    for (int i = 0; count > 1 && i < 2; i++) {
        if (fork() == 0) {
            execv(arguments[1], arguments + 1);
            _exit(9);
        }
        wait(NULL);
    }
    return execv(arguments[1], arguments + 1);
}
