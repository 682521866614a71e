"""DEPTH: 200,000 small lists in a function below DEPTH calls; prints the least of three times, in milliseconds."""

import sys
import time

sys.setrecursionlimit(5000)


def work(x):
    begin = time.perf_counter()
    for _ in range(200_000):
        y = [x]
    return (time.perf_counter() - begin) * 1000


def go(n, x):
    return work(x) if n == 0 else go(n - 1, x)


print(round(min(go(int(sys.argv[1]), 1) for _ in range(3)), 2))
