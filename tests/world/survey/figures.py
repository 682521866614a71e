"""Figures of the ten greatest tracebacks of a subject."""

import re
import statistics

from .runs import ROWS, Failure, alone, attached, traced

# Names of the frames at which the stack of a program or of a thread begins.
ROOTS = re.compile(r"^(_start|main|__libc_start_\w+|(__)?clone3?|start_thread|_dl_start_user|_dl_init)\b")
# Names that `report` makes of an address without a symbol.
NAMELESS = re.compile(r"^(.*\+)?0x[0-9a-f]+$|^<unknown>$|^$")


def percent(flags):
    return round(100 * sum(flags) / len(flags)) if flags else None


def survey(heapline, snapshot, subject, options):
    """Figures of the ten greatest tracebacks: live in a server that runs, at the peak of a program that has ended."""
    at = "live" if subject.load else "peak"
    document = heapline.report(snapshot, "--at", at, *options)
    rows = document["stats"]
    tracebacks = [row["traceback"] for row in rows if row["traceback"]]
    frames = [frame for traceback in tracebacks for frame in traceback]
    blamed = [row["traceback"][row.get("blamed", -1)] for row in rows if row["traceback"]]
    depths = [row["total_nframe"] for row in rows]
    walked = [frame["walked"] for frame in frames if frame.get("walked")]
    return {
        "at": at,
        "mode": document["snapshot"]["mode"],
        "rows": len(rows),
        "median": statistics.median(depths) if depths else 0,
        "deepest": max(depths, default=0),
        "own": sum(names_own(traceback, subject.own) for traceback in tracebacks) if subject.own else None,
        "to_root": sum(reaches_root(traceback) for traceback in tracebacks),
        "named": percent([is_named(frame) for frame in frames]),
        "with_line": percent([frame["lineno"] > 0 for frame in frames]),
        "blamed_named": percent([is_named(frame) for frame in blamed]),
        "walked": {way: percent([one == way for one in walked]) for way in sorted(set(walked))},
    }


def is_named(frame):
    return not NAMELESS.match(frame["function"])


def reaches_root(traceback):
    """Whether one of the two oldest frames begins a stack: a stripped program's `_start` has no name."""
    return any(ROOTS.match(frame["function"]) for frame in traceback[:2])


def names_own(traceback, own):
    """Whether a function of the subject's script or source is on the stack."""
    return any(re.search(rf"\b({own})\b", frame["function"]) for frame in traceback)


def command_of(heapline, snapshot):
    return heapline.report(snapshot, limit=1)["snapshot"]["command"]


def choose(heapline, snapshots, row):
    if not row.process:
        return snapshots[0]
    for snapshot in snapshots[1:]:
        if row.process in command_of(heapline, snapshot):
            return snapshot
    raise Failure(f"no process has {row.process} in its command line")


def harm(before, after):
    """What differs from the run alone."""
    if before.status != after.status:
        return f"status {after.status}, alone {before.status}"
    return "no" if before.output == after.output else "output differs"


def examine(subject, base, heapline):
    """The subject's rows of the table."""
    before = alone(subject, base)
    if before.status not in (0, 128 + subject.stop):
        raise Failure(f"fails alone: {before.status}")
    if not subject.load and before.output != alone(subject, base).output:
        raise Failure("says something else each time")
    ways = [(way, start) for way, start in (("run", traced), ("attach", attached)) if way in subject.ways]
    for way, start in ways if subject.load else ways[:1]:
        try:
            run = start(subject, base, heapline)
        except Failure as failure:
            yield {"name": subject.name, "way": way, "failure": str(failure)}
            continue
        for row in subject.rows:
            label = f"{subject.name}, {row.label}" if row.label else subject.name
            found = {"name": label, "way": way, "harmed": harm(before, run)}
            try:
                found |= survey(heapline, choose(heapline, run.snapshots, row), subject, row.options)
            except Failure as failure:
                found["failure"] = str(failure)
            yield found
