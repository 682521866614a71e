"""Lines that memory comes from, as people read them."""

from __future__ import annotations

import itertools
import linecache
import os
from collections.abc import Iterable
from typing import NamedTuple

from heapline._sizes import format_size
from heapline.snapshot import Frame, StatisticDiff, Traceback

class Line(NamedTuple):
    """Where memory came from, and how much more of it there is than before."""

    size: int
    blocks: int
    place: str
    """file:line, and the function where there is one."""
    source: str
    """The line's text, empty where the file is not there."""
    callers: tuple[str, ...]
    """Who called, the nearest first, up to what runs tests."""


_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_CALLERS = 3


def lines_of(differences: Iterable[StatisticDiff], above: int, limit: int) -> list[Line]:
    """The first `limit` of those that have grown by more than `above` bytes, without our own."""
    grown = (difference for difference in differences if difference.size_diff > above)
    others = (difference for difference in grown if not difference.traceback[-1].filename.startswith(_OWN))
    return [_line(difference) for difference in itertools.islice(others, limit)]


def _line(difference: StatisticDiff) -> Line:
    traceback = difference.traceback
    assert isinstance(traceback, Traceback)
    frame = traceback[-1]
    callers = itertools.takewhile(_is_of_user, reversed(traceback[:-1]))
    source = linecache.getline(frame.filename, frame.lineno).strip()
    called_from = tuple(_place(caller) for caller in itertools.islice(callers, _CALLERS))
    return Line(difference.size_diff, difference.count_diff, _place(frame), source, called_from)


def _is_of_user(frame: Frame) -> bool:
    """Whether a frame is not of what runs tests."""
    return not any(package in frame.filename for package in ("/_pytest/", "/pluggy/"))


def _place(frame: Frame) -> str:
    function = f", in {frame.function}" if frame.function else ""
    return f"{_short(frame.filename)}:{frame.lineno}{function}"


def _short(path: str) -> str:
    """Relative to the working folder where it is below."""
    prefix = os.getcwd() + os.sep
    return path[len(prefix) :] if path.startswith(prefix) else path


def shown(lines: Iterable[Line]) -> list[str]:
    """Lines of text for each: how much and where; what stands there; who called."""
    text = []
    for line in lines:
        blocks = f"{line.blocks} block{'' if line.blocks == 1 else 's'}"
        text.append(f"  {format_size(line.size)} in {blocks}: {line.place}")
        if line.source:
            text.append(f"      {line.source}")
        text += [f"    called from {caller}" for caller in line.callers]
    return text
