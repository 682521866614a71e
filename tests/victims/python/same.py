"""Runs `work.py` from the same state under tracemalloc (`STOCK=1`), which prints its traces, or under Heapline, whose traces
are cleared before (`MARK`) and which ends at once."""
import _tracemalloc
import json
import os

work = compile(open(os.environ["WORK"]).read(), "work.py", "exec")
is_stock, nframe = os.environ["STOCK"] == "1", int(os.environ["NFRAME"])
space = {"__name__": "work"}
assert os.system(os.environ["MARK"] % os.getpid()) == 0
if is_stock:
    _tracemalloc.start(nframe)
exec(work, space)
if not is_stock:
    os._exit(0)
traces = _tracemalloc._get_traces()
_tracemalloc.stop()
print(json.dumps([[trace[1], [list(frame) for frame in trace[2]]] for trace in traces]))
