"""Says what tracemalloc says before its aggregator is killed, and after."""
import sys
import tracemalloc

tracemalloc.start(3)
kept = bytearray(100_000)
print("ready", hex(id(kept)), tracemalloc.is_tracing(), tracemalloc.get_traced_memory()[0] > 100_000, flush=True)
sys.stdin.readline()
said = [tracemalloc.is_tracing(), tracemalloc.get_traced_memory(), tracemalloc.get_object_traceback(kept)]
tracemalloc.clear_traces()
tracemalloc.reset_peak()
for ask in tracemalloc.take_snapshot, tracemalloc.start:
    try:
        ask()
    except RuntimeError as error:
        said.append(str(error))
more = [bytearray(n) for n in range(10_000)]
tracemalloc.stop()
print(said, flush=True)
