"""Blocks of known sizes on known lines, in known functions."""
import os
import sys


class Holder:
    def __init__(self, n):
        self.buffers = [bytearray(1000 + n) for _ in range(3)]  # line: init


def make(n):
    return Holder(n)  # line: make


def produce(n):
    for i in range(n):
        yield bytearray(500)  # line: yield


def recurse(depth):
    if depth == 0:
        return bytearray(70_000)  # line: deep
    return recurse(depth - 1)


kept = [make(i) for i in range(10)]
produced = list(produce(20))
deep = recurse(200)
gone = bytearray(4_000_000)
del gone
grown = bytearray(100)
grown.extend(bytes(100_000))  # line: extend
sys.stdout.write("done\n")
sys.stdout.flush()
os._exit(0)
