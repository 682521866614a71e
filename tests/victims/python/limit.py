"""What the command line and the environment have made of tracemalloc."""
import os
import sys
import tracemalloc


def recurse(n):
    return bytearray(12_345) if n == 0 else recurse(n - 1)


kept = recurse(150)
frames = tracemalloc.get_object_traceback(kept)
print(tracemalloc.is_tracing(), tracemalloc.get_traceback_limit(), frames and len(frames), sys._xoptions)
