"""Sizes and lines as people write and read them."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Iterable
from typing import NamedTuple, Optional

from heapline.snapshot import StatisticDiff, Traceback

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "24 MB", "1.5 GiB", "512K" or "100": K, M, G and T are powers of 1024. ValueError for anything else."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f'{text!r} is no size: use bytes, or a number and a unit such as "24 MB"')
    number, unit = found.groups()
    return round(float(number) * _UNITS[unit.upper()])


def format_size(size: int, sign: bool = False) -> str:
    """Bytes as tracemalloc prints them."""
    plus = "+" if sign else ""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 100 and unit != "B":
            return f"{value:{plus}.1f} {unit}"
        if abs(value) < 10 * 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:{plus}.0f} {unit}"


class Line(NamedTuple):
    """Where memory came from, and how much more of it there is than before."""

    size: int
    count: int
    place: str
    """file:line, and the function where there is one."""
    source: str
    """The line's text, empty where the file is not there."""


def lines_of(differences: Iterable[StatisticDiff], limit: int) -> list[Line]:
    """The first `limit` of those that have grown."""
    lines = []
    for difference in differences:
        if difference.size_diff > 0:
            place, source = place_of(difference.traceback)
            lines.append(Line(difference.size_diff, difference.count_diff, place, source))
            if len(lines) == limit:
                break
    return lines


def place_of(traceback: object) -> tuple[str, str]:
    """File, line and function of the most recent frame, and its source."""
    assert isinstance(traceback, Traceback)
    frame = traceback[-1]
    function = f", in {frame.function}" if frame.function else ""
    place = f"{_short(frame.filename)}:{frame.lineno}{function}"
    return place, linecache.getline(frame.filename, frame.lineno).strip()


def _short(path: str, folder: Optional[str] = None) -> str:
    """Relative to the working folder where it is below."""
    prefix = (folder or os.getcwd()) + os.sep
    return path[len(prefix) :] if path.startswith(prefix) else path


def shown(lines: Iterable[Line]) -> list[str]:
    """Two lines of text for each: how much and where; what stands there."""
    text = []
    for line in lines:
        blocks = f"{line.count} block{'' if line.count == 1 else 's'}"
        text.append(f"  {format_size(line.size)} in {blocks}: {line.place}")
        if line.source:
            text.append(f"      {line.source}")
    return text
