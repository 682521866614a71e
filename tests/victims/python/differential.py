"""Prints what `tracemalloc` traces of a piece of work, which is done once before, so that nothing is imported meanwhile:
CPython's own keeps the names of files alive that it meets, which is seen where they are read."""
import gc
import json
import os
import sys
import tracemalloc
import unittest

work, nframe = sys.argv[1], int(sys.argv[2])
nowhere = open(os.devnull, "w")
del sys.argv[1:]
if work.endswith(".py"):
    code = compile(open(work).read(), work, "exec")


def run():
    if work.endswith(".py"):
        exec(code, {"__name__": "__main__"})
    else:
        suite = unittest.defaultTestLoader.loadTestsFromName(work)
        assert unittest.TextTestRunner(stream=nowhere).run(suite).wasSuccessful()


run()
gc.collect()
tracemalloc.start(nframe)
run()
sums = tracemalloc.get_traced_memory()
traces = tracemalloc._get_traces()
tracemalloc.stop()
print(json.dumps([sums, [[trace[1], trace[3], [list(frame) for frame in trace[2]]] for trace in traces]]))
