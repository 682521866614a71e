"""The layers of memory, by number. Layers are never summed: the block behind a Python object is native memory too.

Numbers below 2**32 are tracemalloc's own: 0 is Python's objects, N what extensions track with PyTraceMalloc_Track.
"""

from __future__ import annotations

from typing import Union

PYTHON = 0
"""What CPython's allocators gave: tracemalloc's domain 0."""
NATIVE = 1 << 32
"""What malloc and its family gave, to anybody in the process."""
MMAP = (1 << 32) + 1
"""What the program has mapped and may use, in whole pages."""
RESERVED = (1 << 32) + 2
"""Address space that is only reserved."""

_NAMES = {PYTHON: "python", NATIVE: "native", MMAP: "mmap", RESERVED: "mmap:reserved"}

Domain = Union[int, str]
"""A domain's number, or its name as `report --domain` takes it."""


def name_of(domain: Domain) -> str:
    """The name of a domain: "python", "native", "mmap", "mmap:reserved" or "track:N". A pool has its name only: "pool:NAME"."""
    if isinstance(domain, str):
        return domain
    return _NAMES.get(domain, f"track:{domain}")
