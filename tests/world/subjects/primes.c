#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    char *composite = calloc(100000, 1);
    long sum = 0;
    for (long n = 2; n < 100000; n++) {
        if (composite[n]) continue;
        sum += n;
        for (long m = 2 * n; m < 100000; m += n) composite[m] = 1;
    }
    printf("%ld\n", sum);
    free(composite);
    return 0;
}
