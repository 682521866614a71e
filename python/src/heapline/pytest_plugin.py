"""The pytest plugin: limits on what a test allocates and on what it leaves behind, and a summary of the hungriest tests.

    @pytest.mark.limit_memory("24 MB")
    @pytest.mark.limit_leaks("1 MB", warmups=3)
    pytest --heapline

One aggregator attaches at the first test that is measured, and stays; each worker of xdist has its own. What lived before a test is not
counted against it. Python's objects and malloc's blocks are layers of the same memory: each has to keep the limit.
"""

from __future__ import annotations

import bisect
import gc
import os
from collections.abc import Generator
from tracemalloc import BaseFilter
from typing import Any, NamedTuple, Optional

import pytest

from heapline import domains, tracing
from heapline._sizes import format_size, parse_size
from heapline._text import Line, lines_of, shown
from heapline.snapshot import DomainFigures, DomainFilter, Filter, Snapshot, load

_LAYERS = (domains.PYTHON, domains.NATIVE)
_SHOWN_LINES = 5
_ATTRIBUTE = "heapline"
"""Of a report: what the test took, as a dict, so that xdist carries it."""

_MEASURES = pytest.StashKey[bool]()
"""Of a configuration: whether its process is traced; unset before the first measured test."""
_STARTED = pytest.StashKey[bool]()
"""Whether that was our doing."""
_LARGEST = pytest.StashKey[list[int]]()
"""Peaks of the tests so far that a summary would show, the smallest first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("heapline", "memory of tests (heapline)")
    group.addoption("--heapline", action="store_true", help="measure each test's memory, show the hungriest at the end")
    group.addoption("--heapline-top", type=int, default=10, metavar="N", help="tests in the summary, 0 for all (default: 10)")
    group.addoption(
        "--heapline-lines",
        type=int,
        default=0,
        metavar="N",
        help="with N lines that most of each one's memory is from (default: 0; implies --heapline)",
    )
    group.addoption(
        "--heapline-nframe", type=int, default=16, metavar="N", help="frames kept per traceback (default: 16)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        'limit_memory(size): fail the test when it has more than size ("24 MB") at any moment beyond what lived before',
    )
    config.addinivalue_line(
        "markers",
        'limit_leaks(size, warmups=3, filters=[]): fail the test when one place keeps more than size ("1 MB") after it; it '
        "is run warmups times before; only what the heapline.Filters let through counts",
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.stash.get(_STARTED, False):
        tracing.stop()


class _Limits(NamedTuple):
    """A test's marks."""

    memory: Optional[int]
    leaks: Optional[int]
    warmups: int
    filters: list[BaseFilter]


def _limits(item: pytest.Item) -> _Limits:
    memory, leaks, warmups, filters = None, None, 0, []
    mark = item.get_closest_marker("limit_memory")
    if mark is not None:
        memory = _size(mark)
    mark = item.get_closest_marker("limit_leaks")
    if mark is not None:
        leaks = _size(mark)
        warmups = mark.kwargs.get("warmups", 3)
        if not isinstance(warmups, int) or warmups < 0:
            raise pytest.UsageError(f"limit_leaks: warmups is how often the test is run before, not {warmups!r}")
        filters = list(mark.kwargs.get("filters", []))
        if not all(isinstance(one, (Filter, DomainFilter)) for one in filters):
            raise pytest.UsageError("limit_leaks: filters are heapline.Filter or heapline.DomainFilter")
    return _Limits(memory, leaks, warmups, filters)


def _size(mark: pytest.Mark) -> int:
    others = set(mark.kwargs) - {"warmups", "filters"} if mark.name == "limit_leaks" else set(mark.kwargs)
    if len(mark.args) != 1 or not isinstance(mark.args[0], str) or others:
        raise pytest.UsageError(f'{mark.name} takes one size, such as @pytest.mark.{mark.name}("24 MB")')
    try:
        return parse_size(mark.args[0])
    except ValueError as error:
        raise pytest.UsageError(f"{mark.name}: {error}") from None


def _is_measured(item: pytest.Item) -> bool:
    marks = ("limit_memory", "limit_leaks")
    return _shows(item.config) or any(item.get_closest_marker(name) for name in marks)


def _shows(config: pytest.Config) -> bool:
    """Whether every test is measured, for the summary."""
    return bool(config.getoption("--heapline") or config.getoption("--heapline-lines"))


def _measures(config: pytest.Config) -> bool:
    """Traces this process from its first measured test on. False, with a warning, where it cannot be."""
    if _MEASURES not in config.stash:
        config.stash[_MEASURES] = tracing.is_tracing() or _start(config)
    return config.stash[_MEASURES]


def _start(config: pytest.Config) -> bool:
    try:
        tracing.start(config.getoption("--heapline-nframe"))
    except RuntimeError as error:
        if _shows(config):
            raise pytest.UsageError(f"--heapline: {error}") from None
        text = f"memory is not measured, and limits are not checked: {error}"
        config.issue_config_time_warning(pytest.PytestWarning(text), stacklevel=2)
        return False
    config.stash[_STARTED] = True
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    if not _is_measured(item) or not _measures(item.config):
        return (yield)
    limits = _limits(item)
    measure = _Measure(limits, item.config)
    if limits.leaks is None:
        measure.begin()
    else:
        _repeat(item, limits.warmups, measure)
    try:
        result = yield
        item.stash[_TAKEN] = measure.end()
        return result
    finally:
        measure.forget()


def _repeat(item: pytest.Item, warmups: int, measure: _Measure) -> None:
    """Has the item run its test several times, and the last time measured."""
    runtest = item.runtest

    def repeated() -> None:
        del item.runtest
        for left in reversed(range(warmups + 1)):
            if left == 0:
                gc.collect()
                measure.begin()
            # The only place that runs it: one line of the test has the same traceback each time.
            runtest()

    item.runtest = repeated  # type: ignore[method-assign]


class _Measure:
    """One run of a test."""

    def __init__(self, limits: _Limits, config: pytest.Config) -> None:
        self._limits = limits
        self._config = config
        self._before: Optional[dict[str, DomainFigures]] = None
        self._before_file: Optional[str] = None

    def begin(self) -> None:
        has_limits = self._limits.memory is not None or self._limits.leaks is not None
        if has_limits or self._config.getoption("--heapline-lines"):
            self._before_file = tracing._take()
        tracing.reset_peak()
        self._before = tracing.get_domains()

    def end(self) -> _Taken:
        """What it took. Fails the test where a limit is not kept."""
        after = tracing.get_domains()
        taken = _Taken.between(self._before or after, after)
        if self._before_file is None:
            return taken
        lines = self._config.getoption("--heapline-lines")
        if lines and self._is_hungry(taken):
            taken = taken._replace(lines=shown(_lines_at_peak(taken, self._before_file, lines)))
        _check(self._limits, taken, self._before_file)
        return taken

    def _is_hungry(self, taken: _Taken) -> bool:
        """Whether the test may be among those that are shown: its lines take longer to find than its sums."""
        largest = self._config.stash.setdefault(_LARGEST, [])
        limit = self._config.getoption("--heapline-top") or len(largest) + 1
        bisect.insort(largest, taken.peak)
        del largest[:-limit]
        return taken.peak >= largest[0]

    def forget(self) -> None:
        if self._before_file is not None:
            os.unlink(self._before_file)


class _Taken(NamedTuple):
    """What a test took, in bytes, by the larger of both layers; blocks are those of Python's objects."""

    python_peak: int
    native_peak: int
    allocated: int
    allocs: int
    kept: int
    lines: list[str]
    """What most of it was from, as text."""

    @staticmethod
    def between(before: dict[str, DomainFigures], after: dict[str, DomainFigures]) -> _Taken:
        def change(domain: int, end: str, start: str) -> int:
            name = domains.name_of(domain)
            old = int(getattr(before[name], start)) if name in before else 0
            return int(getattr(after[name], end)) - old if name in after else 0

        return _Taken(
            python_peak=change(domains.PYTHON, "peak", "current"),
            native_peak=change(domains.NATIVE, "peak", "current"),
            allocated=max(change(layer, "allocated_bytes", "allocated_bytes") for layer in _LAYERS),
            allocs=change(domains.PYTHON, "allocs", "allocs"),
            kept=max(change(layer, "current", "current") for layer in _LAYERS),
            lines=[],
        )

    @property
    def peak(self) -> int:
        return max(self.python_peak, self.native_peak)

    @property
    def layer(self) -> int:
        """Where most was at the peak."""
        return domains.PYTHON if self.python_peak >= self.native_peak else domains.NATIVE


_TAKEN = pytest.StashKey[_Taken]()


def _check(limits: _Limits, taken: _Taken, before_file: str) -> None:
    """Fails the test where a limit is not kept."""
    if limits.memory is not None and taken.peak > limits.memory:
        lines = _lines_at_peak(taken, before_file, _SHOWN_LINES)
        what = f"at its peak the test had {format_size(taken.peak)} more than before"
        _fail("limit_memory", what, limits.memory, taken.layer, "most of it then was from", lines)
    if limits.leaks is not None:
        gc.collect()
        now_all, before_all = tracing.take_snapshot(), load(before_file)
        for layer in _LAYERS:
            now, before = (_seen(one, layer).filter_traces(limits.filters) for one in (now_all, before_all))
            lines = lines_of(now.compare_to(before, "traceback"), limits.leaks, _SHOWN_LINES)
            if lines:
                what = f"the test keeps {format_size(lines[0].size)} from one place"
                _fail("limit_leaks", what, limits.leaks, layer, "what is kept was allocated at", lines)


def _lines_at_peak(taken: _Taken, before_file: str, limit: int) -> list[Line]:
    """What lived at the peak and not before, the most first."""
    now, before = (_seen(snapshot, taken.layer) for snapshot in (tracing.take_snapshot(), load(before_file)))
    return lines_of(now.view(at="peak").compare_to(before, "lineno"), taken.peak // 100, limit)


def _seen(snapshot: Snapshot, layer: int) -> Snapshot:
    # Malloc's blocks too by Python's lines: those can be changed by who reads this.
    return snapshot.view(domain=layer, frames="python")


def _fail(mark: str, what: str, limit: int, layer: int, heading: str, lines: list[Line]) -> None:
    first = f"{mark}: {what}, its limit is {format_size(limit)} ({domains.name_of(layer)} memory)"
    pytest.fail("\n".join([first, f"{heading}:", *shown(lines)]), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    taken = item.stash.get(_TAKEN, None)
    if call.when == "call" and taken is not None:
        setattr(report, _ATTRIBUTE, taken._asdict())
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _shows(config):
        return
    tests = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            taken = getattr(report, _ATTRIBUTE, None)
            if isinstance(taken, dict):
                tests.append((_Taken(**taken), report.nodeid))
    terminalreporter.section("hungriest tests (heapline)")
    if not tests:
        terminalreporter.write_line("no test was measured")
        return
    tests.sort(reverse=True, key=lambda test: (test[0].peak, test[0].allocated))
    limit = config.getoption("--heapline-top")
    terminalreporter.write_line(f"{'peak':>10}  {'allocated':>10}  {'objects':>10}  {'kept':>10}")
    for taken, nodeid in tests[: limit or None]:
        peak, allocated = format_size(taken.peak), format_size(taken.allocated)
        kept = format_size(taken.kept, sign=True)
        terminalreporter.write_line(f"{peak:>10}  {allocated:>10}  {taken.allocs:>10}  {kept:>10}  {nodeid}")
        for line in taken.lines:
            terminalreporter.write_line(f"            {line}")
