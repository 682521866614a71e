"""Blocks that are tracked by hand, as numpy does with its arrays, while the program traces and while it does not."""
import ctypes
import tracemalloc

track = ctypes.pythonapi.PyTraceMalloc_Track
track.argtypes = [ctypes.c_uint, ctypes.c_size_t, ctypes.c_size_t]
untrack = ctypes.pythonapi.PyTraceMalloc_Untrack
untrack.argtypes = [ctypes.c_uint, ctypes.c_size_t]


def array(address, size):
    return track(389047, address, size)  # line: array


assert array(0x10, 1000) == -2, "nothing is traced"
tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
assert array(0x20, 5_000_000) == 0
assert array(0x20, 6_000_000) == 0, "tracking again replaces"
assert array(0x30, 70) == 0
assert track(7, 0x30, 500) == 0
assert untrack(7, 0x30) == 0 and untrack(7, 0x30) == 0
now, peak = tracemalloc.get_traced_memory()
assert 6_000_070 <= now - before < 6_010_000 and peak >= 6_000_000, (before, now, peak)
snapshot = tracemalloc.take_snapshot()
arrays = snapshot.filter_traces([tracemalloc.DomainFilter(True, 389047)])
assert sorted(trace.size for trace in arrays.traces) == [70, 6_000_000]
# What numpy does with a block that it tracks by itself: not to be counted twice.
ctypes.pythonapi.PyMem_RawMalloc.restype = ctypes.c_void_p
block = ctypes.pythonapi.PyMem_RawMalloc(ctypes.c_size_t(1 << 20))
assert tracemalloc.get_traced_memory()[0] > now + (1 << 20)
assert untrack(0, block) == 0 and untrack(0, block) == 0
assert tracemalloc.get_traced_memory()[0] < now + (1 << 20)
ctypes.pythonapi.PyMem_RawFree(ctypes.c_void_p(block))
for again in range(3):
    address = ctypes.pythonapi.PyMem_RawMalloc(ctypes.c_size_t(1 << 20))
    untrack(0, address)
    ctypes.pythonapi.PyMem_RawFree(ctypes.c_void_p(address))
    address = ctypes.pythonapi.PyMem_RawMalloc(ctypes.c_size_t(1 << 20))
    ctypes.pythonapi.PyMem_RawFree(ctypes.c_void_p(address))
tracemalloc.stop()
assert untrack(389047, 0x30) == -2, "nothing is traced, and yet it is gone"
