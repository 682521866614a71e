"""Answers what CPython's own tracemalloc and fnmatch say, for tests/oracle.rs. JSON in, JSON out."""
import fnmatch
import json
import sys
import tracemalloc


def snapshot(groups):
    traces = []
    for size, count, frames in groups:
        traceback = tuple((filename, lineno) for filename, lineno in frames)
        traces.extend([(0, size, traceback, len(traceback))] * count)
    return tracemalloc.Snapshot(traces, 64)


def statistics(case):
    filters = [
        tracemalloc.Filter(inclusive, pattern, lineno, all_frames=case["all_frames"])
        for inclusive, pattern, lineno in case["filters"]
    ]
    new = snapshot(case["new"]).filter_traces(filters)
    key = (case["by"], case["cumulative"])
    if case["old"] is None:
        rows = [(stat, None, None) for stat in new.statistics(*key)]
    else:
        old = snapshot(case["old"]).filter_traces(filters)
        rows = [(stat, stat.size_diff, stat.count_diff) for stat in new.compare_to(old, *key)]
    return [
        [[[f.filename, f.lineno] for f in stat.traceback], stat.size, stat.count, size_diff, count_diff]
        for stat, size_diff, count_diff in rows
    ]


questions = json.load(sys.stdin)
json.dump(
    {
        "statistics": [statistics(case) for case in questions["statistics"]],
        "globs": [fnmatch.fnmatchcase(text, pattern) for pattern, text in questions["globs"]],
        "sizes": [tracemalloc._format_size(size, sign) for size, sign in questions["sizes"]],
    },
    sys.stdout,
)
