"""Heapline: exact heap tracing of this process and others, in tracemalloc's words.

    import heapline

    heapline.start()                    # an aggregator attaches to this process
    ...
    current, peak = heapline.get_traced_memory()
    for line in heapline.take_snapshot().statistics("lineno")[:10]:
        print(line)
    heapline.stop()

`load` reads any snapshot, `python -m heapline run` traces a program from its first instruction. All sizes are bytes.
"""

from heapline.domains import MMAP, NATIVE, PYTHON, RESERVED
from heapline.snapshot import (
    DomainFigures,
    DomainFilter,
    Filter,
    Frame,
    SampledStatistic,
    SampledStatisticDiff,
    Snapshot,
    Statistic,
    StatisticDiff,
    Trace,
    Traceback,
    Unseen,
    load,
)
from heapline.tracing import (
    Tracker,
    clear_traces,
    get_domains,
    get_traceback_limit,
    get_traced_memory,
    is_tracing,
    mark,
    pause,
    reset_peak,
    start,
    stop,
    take_snapshot,
    track,
    untrack,
)

__all__ = [
    "MMAP",
    "NATIVE",
    "PYTHON",
    "RESERVED",
    "DomainFigures",
    "DomainFilter",
    "Filter",
    "Frame",
    "SampledStatistic",
    "SampledStatisticDiff",
    "Snapshot",
    "Statistic",
    "StatisticDiff",
    "Trace",
    "Traceback",
    "Tracker",
    "Unseen",
    "clear_traces",
    "get_domains",
    "get_traceback_limit",
    "get_traced_memory",
    "is_tracing",
    "load",
    "mark",
    "pause",
    "reset_peak",
    "start",
    "stop",
    "take_snapshot",
    "track",
    "untrack",
]


def load_ipython_extension(shell: object) -> None:
    """What IPython's `%load_ext heapline` calls: gives it `%%heapline`."""
    from heapline.ipython import load_ipython_extension

    load_ipython_extension(shell)
