"""Hot functions, which an interpreter may compile: calls, exceptions, properties and generators."""

import sys


def leaf(n):
    return [n]


def caller(n):
    return leaf(n)


def fails(n):
    try:
        result = caller(n)
        if n % 7 == 0:
            raise ValueError([n])
        return result
    except ValueError as error:
        return [error, [n]]


class Holder:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = [held]

    @property
    def again(self):
        return [self.held]


def loop(n):
    kept = None
    for i in range(n):
        kept = fails(i)
        caller(i)
        kept = Holder(i).again
        kept = [leaf(j) for j in range(2)]
    return kept


def items(n):
    for i in range(n):
        yield [i]


for _ in range(2):
    loop(20000)
    for item in items(10000):
        caller(item)
print(hasattr(sys, "_jit") and sys._jit.is_enabled())
