"""Sizes as people write them."""

from __future__ import annotations

import tracemalloc

import pytest

from heapline._sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("24 MB", 24 << 20), ("1.5 GiB", 3 << 29), ("512K", 512 << 10), ("100", 100), ("7 b", 7), ("2TB", 2 << 40)],
)
def test_sizes_are_understood(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1 MB", "1 XB", "1,5 MB", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)


@pytest.mark.parametrize("size", [0, 99, 100, 10239, 10240, 102399, 102400, 429875, 10 << 20, 1 << 50, 1 << 60, -429875])
def test_sizes_look_as_in_tracemalloc(size):
    for sign in (False, True):
        assert format_size(size, sign) == tracemalloc._format_size(size, sign)
