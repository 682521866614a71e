"""Code objects that come and go at the same addresses: each block is its own function's."""
import os

kept = []
for i in range(3000):
    space = {}
    exec(compile("def make():\n    return bytearray(%d)\n" % (5000 + i), "generated_%d.py" % i, "exec"), space)
    kept.append(space["make"]())
    del space
os._exit(0)
