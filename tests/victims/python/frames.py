"""Stacks of frames that change in every way, with blocks at each: calls and returns, exceptions,
generators, callbacks of C, tracing, recursion, frames at addresses of frames that are gone."""

import sys
import threading

kept = []


def block():
    return [object()]


def calls_at_two_lines(n):
    for _ in range(n):
        block()
        block()


def leaf(fails):
    kept[:] = [[0] * 3]
    if fails:
        raise ValueError
    return kept


def caller(fails):
    return leaf(fails)


def ends_by_exceptions(n):
    """The same frames at the same addresses, called from two lines, and left by exceptions."""
    for i in range(n):
        try:
            caller(True)
        except ValueError:
            pass
        try:
            caller(i % 3 == 0)
        except ValueError:
            pass


def generator(fails):
    kept[:] = [[0] * 3]
    if fails:
        raise ValueError
    yield kept


def consume(items):
    for item in items:
        kept[:] = [item]


def generators_end_by_exceptions(n):
    """A generator is resumed without an operand, from two lines, by frames at the same addresses."""
    for i in range(n):
        try:
            consume(generator(True))
        except ValueError:
            pass
        try:
            consume(generator(i % 2 == 0))
        except ValueError:
            pass


def delegate(fails):
    yield from generator(fails)


def delegating(n):
    for i in range(n):
        try:
            list(delegate(i % 2 == 0))
        except ValueError:
            pass
        try:
            for _ in delegate(i % 3 == 0):
                block()
        except ValueError:
            pass


def callbacks(n):
    for _ in range(n):
        sorted([3, 1, 2], key=lambda x: [x])
        list(map(lambda x: [x], range(3)))
        max(range(3), key=lambda x: leaf(False) and x)


class Item:
    @property
    def value(self):
        return [self]

    def __getitem__(self, key):
        return [key]

    def __getattr__(self, name):
        return [name]


def operators(n):
    item = Item()
    for _ in range(n):
        item.value, item[1], item.other
        item.value, item[2], item.another


def deep(n):
    block()
    if n:
        deep(n - 1)
        block()
    return block()


def falls_from_deep(n):
    def down(k):
        kept[:] = [[k]]
        if k == 0:
            raise ValueError
        return down(k - 1)

    for i in range(n):
        try:
            down(i % 100)
        except ValueError:
            block()


def traced(n):
    def trace(frame, event, argument):
        kept[:] = [[event]]
        return trace

    sys.settrace(trace)
    try:
        calls_at_two_lines(n)
        ends_by_exceptions(n)
        generators_end_by_exceptions(n)
    finally:
        sys.settrace(None)


def all_of(n):
    calls_at_two_lines(n)
    ends_by_exceptions(n)
    generators_end_by_exceptions(n)
    delegating(n)
    callbacks(n)
    operators(n)
    falls_from_deep(n)
    deep(400)
    traced(n // 4)
    exec("def made():\n  return block()\nfor _ in range(5): made(); made()", globals())


all_of(200)
threads = [threading.Thread(target=all_of, args=(100,)) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
deep(900)
print("done")
