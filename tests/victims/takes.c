/* Takes as many mebibytes as the argument says, if the system gives them. */
#include <stdio.h>
#include <stdlib.h>
int main(int count, char **arguments) {
    int wanted = count == 2 ? atoi(arguments[1]) : 0, taken = 0;
    while (taken < wanted && malloc(1 << 20)) taken++;
    printf("taken %d\n", taken);
    return taken < wanted;
}
