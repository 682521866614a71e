"""Sizes as people write and read them."""

from __future__ import annotations

import re

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
