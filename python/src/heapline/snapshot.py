"""Snapshots, with tracemalloc's methods and types.

The types are tracemalloc's own classes, or small subclasses of them that know functions too, so they print, compare and hash
alike. All tables stay in compiled code: a row becomes an object when somebody looks at it, so the first ten of a million
groups cost ten objects.
"""

from __future__ import annotations

import linecache
import os
import warnings
from collections.abc import Iterable, Sequence
from tracemalloc import BaseFilter, DomainFilter, Filter, Statistic, StatisticDiff
from tracemalloc import Frame as _Frame
from tracemalloc import Trace as _Trace
from tracemalloc import Traceback as _Traceback
from typing import TYPE_CHECKING, Any, Callable, Generic, NamedTuple, Optional, SupportsIndex, TypeVar, Union, overload

from heapline._platform import require_native
from heapline._sizes import format_size
from heapline.domains import Domain, name_of

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from heapline import _native

__all__ = [
    "DomainFilter",
    "DomainFigures",
    "Filter",
    "Frame",
    "Rows",
    "SampledStatistic",
    "SampledStatisticDiff",
    "Snapshot",
    "Statistic",
    "StatisticDiff",
    "Trace",
    "Traceback",
    "Unseen",
    "load",
]

_T = TypeVar("_T")
_Places = tuple[tuple[str, int], ...]
_Functions = tuple[Optional[str], ...]
_Interval = tuple[int, int]


class DomainFigures(NamedTuple):
    """Sums of one domain. Sizes are bytes. In a sampled snapshot current, peak and blocks are estimates, the others exact."""

    domain: str
    current: int
    peak: int
    blocks: int
    allocs: int
    frees: int
    allocated_bytes: int


class Unseen(NamedTuple):
    """A part of the program's memory that the snapshot knows it has not seen."""

    kind: str
    object: str
    name: str
    text: str

    def __str__(self) -> str:
        where = f" in {os.path.basename(self.object)}" if self.object else ""
        return f"{self.name}{where}: {self.text}"


class Frame(_Frame):
    """tracemalloc's Frame that knows its function. Equal to any frame of the same file and line."""

    __slots__ = ("_function",)

    def __init__(self, frame: tuple[str, int], function: Optional[str] = None) -> None:
        super().__init__(frame)
        self._function = function

    @property
    def function(self) -> Optional[str]:
        """Qualified name (before CPython 3.11 the name), or a native function; None where a group has several."""
        return self._function


class Traceback(_Traceback):
    """tracemalloc's Traceback of `Frame`s: the oldest first."""

    __slots__ = ("_functions",)
    _frames: _Places

    def __init__(self, frames: _Places, functions: _Functions, total_nframe: Optional[int] = None) -> None:
        super().__init__(frames, total_nframe)
        self._functions = tuple(reversed(functions))

    @overload
    def __getitem__(self, index: SupportsIndex) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Frame, ...]: ...
    def __getitem__(self, index: Union[SupportsIndex, slice]) -> Union[Frame, tuple[Frame, ...]]:
        if isinstance(index, slice):
            return tuple(Frame(*pair) for pair in zip(self._frames[index], self._functions[index]))
        return Frame(self._frames[index], self._functions[index])

    def format(self, limit: Optional[int] = None, most_recent_first: bool = False) -> list[str]:
        """As tracemalloc's, with the function behind the line as in any other traceback."""
        if limit is None:
            frames = self[:]
        else:
            frames = self[-limit:] if limit > 0 else self[:limit]
        lines = []
        for frame in reversed(frames) if most_recent_first else frames:
            function = f", in {frame.function}" if frame.function else ""
            lines.append(f'  File "{frame.filename}", line {frame.lineno}{function}')
            source = linecache.getline(frame.filename, frame.lineno).strip()
            if source:
                lines.append(f"    {source}")
        return lines


class Trace(_Trace):
    """tracemalloc's Trace: a live block."""

    __slots__ = ("_functions",)
    _trace: tuple[int, int, _Places, int]

    def __init__(self, domain: int, size: int, frames: _Places, functions: _Functions, total_nframe: int) -> None:
        super().__init__((domain, size, frames, total_nframe))
        self._functions = functions

    @property
    def traceback(self) -> Traceback:
        """Where it was allocated."""
        _domain, _size, frames, total_nframe = self._trace
        return Traceback(frames, self._functions, total_nframe)


def _between(low: str, high: str) -> str:
    return f"{low} to {high}"


class SampledStatistic(Statistic):
    """tracemalloc's Statistic, estimated from samples. Printed figures are marked with ~ and have their intervals."""

    __slots__ = ("count_interval", "size_interval")

    def __init__(
        self, traceback: Traceback, size: int, count: int, size_interval: _Interval, count_interval: _Interval
    ) -> None:
        super().__init__(traceback, size, count)
        self.size_interval = size_interval
        """95 % interval of `size`, in bytes."""
        self.count_interval = count_interval
        """95 % interval of `count`."""

    def __str__(self) -> str:
        size = f"size=~{format_size(self.size)} ({_between(*map(format_size, self.size_interval))})"
        return f"{self.traceback}: {size}, count=~{self.count} ({_between(*map(str, self.count_interval))})"

    def __repr__(self) -> str:
        return f"<SampledStatistic traceback={self.traceback!r} size=~{self.size} count=~{self.count}>"


class SampledStatisticDiff(StatisticDiff):
    """tracemalloc's StatisticDiff of snapshots of which one at least is sampled."""

    __slots__ = ("count_interval", "size_diff_doubt", "size_interval")

    def __init__(
        self,
        traceback: Traceback,
        figures: tuple[int, int, int, int],
        doubt: tuple[_Interval, _Interval, Optional[int]],
    ) -> None:
        super().__init__(traceback, *figures)
        self.size_interval, self.count_interval, half = doubt
        self.size_diff_doubt = half or 0
        """Half of the 95 % interval of `size_diff`, in bytes."""

    def __str__(self) -> str:
        size = f"size=~{format_size(self.size)} ({format_size(self.size_diff, True)} ± {format_size(self.size_diff_doubt)})"
        return f"{self.traceback}: {size}, count=~{self.count} (~{self.count_diff:+})"

    def __repr__(self) -> str:
        figures = f"size=~{self.size} ({self.size_diff:+}) count=~{self.count} ({self.count_diff:+})"
        return f"<SampledStatisticDiff traceback={self.traceback!r} {figures}>"


class Rows(Sequence[_T], Generic[_T]):
    """A list that makes its elements when they are looked at. `list(rows)` makes them all."""

    __slots__ = ("_range", "_row")

    def __init__(self, row: Callable[[int], _T], indices: range) -> None:
        self._row = row
        self._range = indices

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> Rows[_T]: ...
    def __getitem__(self, index: Union[int, slice]) -> Union[_T, Rows[_T]]:
        if isinstance(index, slice):
            return Rows(self._row, self._range[index])
        return self._row(self._range[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Rows, list)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"<Rows len={len(self)} [{shown}{', ...' if len(self) > 3 else ''}]>"


class _Rule(NamedTuple):
    """A filter as compiled code takes it."""

    inclusive: bool
    pattern: Optional[str]
    lineno: Optional[int]
    all_frames: bool
    domain: Optional[int]


def _rule(wanted: BaseFilter) -> _Rule:
    if isinstance(wanted, Filter):
        return _Rule(
            wanted.inclusive, wanted.filename_pattern, wanted.lineno, bool(wanted.all_frames), wanted.domain
        )
    if isinstance(wanted, DomainFilter):
        return _Rule(wanted.inclusive, None, None, False, wanted.domain)
    raise TypeError(f"filters are Filter or DomainFilter, not {type(wanted).__name__}")


class Snapshot:
    """A snapshot of any process that Heapline traced, with the methods of tracemalloc's Snapshot.

    It holds all layers and shows one: what tracemalloc would (Python's objects and what extensions track) where CPython ran,
    malloc's blocks otherwise. `view()` shows another layer or moment; so does an inclusive filter that names a domain.
    """

    __slots__ = ("_meta", "_native")

    def __init__(self, native: _native.Snapshot) -> None:
        self._native = native
        self._meta = native.meta

    # What tracemalloc's has.

    @staticmethod
    def load(filename: Union[str, os.PathLike[str]]) -> Snapshot:
        """See `heapline.load`."""
        return load(filename)

    def dump(self, filename: Union[str, os.PathLike[str]]) -> None:
        """Writes the snapshot to a file, for `load` and for `report`: all of it, whatever filters let through.

        OSError where it cannot be written.
        """
        self._native.dump(os.fspath(filename))

    @property
    def traceback_limit(self) -> int:
        """Most frames that a traceback has."""
        return int(self._meta["nframe"])

    @property
    def traces(self) -> Rows[Trace]:
        """Every live block; of a sampled snapshot every sample, with the bytes that it stands for.

        ValueError for the view of another moment: its single blocks are not known.
        """
        blocks = self._native.blocks
        return Rows(lambda index: Trace(*blocks.row(index)), range(len(blocks)))

    def filter_traces(self, filters: Iterable[BaseFilter]) -> Snapshot:
        """What the filters let through, by tracemalloc's rules: one of the inclusive ones, and all of the exclusive ones.

        An inclusive filter that names a domain brings it into view: `filter_traces([DomainFilter(True, heapline.NATIVE)])`.
        """
        if not isinstance(filters, Iterable):
            raise TypeError(f"filters must be a list of filters, not {type(filters).__name__}")
        return Snapshot(self._native.filter([_rule(wanted) for wanted in filters]))

    def statistics(self, key_type: str, cumulative: bool = False) -> Rows[Statistic]:
        """Groups by "filename", "lineno" or "traceback", sorted from the largest to the smallest: size, count, traceback.

        With `cumulative` a block counts for each frame of its traceback. Groups that are estimated from samples are
        `SampledStatistic`s. ValueError for other keys, and for "traceback" with `cumulative`.
        """
        rows = self._native.statistics(key_type, cumulative)
        self._warn()

        def statistic(index: int) -> Statistic:
            frames, functions, depth, size, count, _, _ = rows.row(index)
            traceback, doubt = Traceback(frames, functions, depth), rows.doubt(index)
            if doubt is None:
                return Statistic(traceback, size, count)
            return SampledStatistic(traceback, size, count, doubt[0], doubt[1])

        return Rows(statistic, range(len(rows)))

    def compare_to(self, old_snapshot: Snapshot, key_type: str, cumulative: bool = False) -> Rows[StatisticDiff]:
        """What changed since an older snapshot, the largest change first. See `statistics`."""
        rows = self._native.compare_to(old_snapshot._native, key_type, cumulative)
        self._warn()

        def difference(index: int) -> StatisticDiff:
            frames, functions, depth, size, count, size_diff, count_diff = rows.row(index)
            assert size_diff is not None and count_diff is not None
            traceback, doubt = Traceback(frames, functions, depth), rows.doubt(index)
            if doubt is None:
                return StatisticDiff(traceback, size, size_diff, count, count_diff)
            return SampledStatisticDiff(traceback, (size, size_diff, count, count_diff), doubt)

        return Rows(difference, range(len(rows)))

    # What Heapline knows beyond that.

    def view(
        self,
        domain: Optional[Domain] = None,
        at: Optional[str] = None,
        frames: Optional[str] = None,
        raw_frames: Optional[bool] = None,
    ) -> Snapshot:
        """The same file, seen otherwise; what is not given stays. ValueError for what there is not.

        domain: `heapline.NATIVE` and so on, or its name. at: "live" (at the snapshot), "peak" (at the moment of the domain's peak)
        or "total" (all that was allocated since the start). frames: of native tracebacks, "mixed" with Python's in their places,
        "native" or "python" alone. raw_frames: with allocators' and the interpreter's own.
        """
        name = None if domain is None else name_of(domain)
        return Snapshot(self._native.view(name, at, frames, raw_frames))

    @property
    def domains(self) -> dict[str, DomainFigures]:
        """The sums of each domain, by its name, whatever is in view."""
        return {row[0]: DomainFigures(*row) for row in self._native.domains}

    @property
    def domain(self) -> int:
        """The domain in view; of those that tracemalloc would show, the first."""
        return self._native.looks_at[0]

    @property
    def at(self) -> str:
        """The moment in view: "live", "peak" or "total"."""
        return self._native.looks_at[1]

    @property
    def size(self) -> int:
        """Bytes of all traces in view."""
        return self._native.total[0]

    @property
    def count(self) -> int:
        """Blocks of all traces in view."""
        return self._native.total[1]

    @property
    def size_interval(self) -> Optional[_Interval]:
        """95 % interval of `size`, in bytes, where it is an estimate from samples."""
        return self._native.total[2]

    @property
    def count_interval(self) -> Optional[_Interval]:
        """95 % interval of `count`, where it is an estimate from samples."""
        return self._native.total[3]

    @property
    def mode(self) -> str:
        """"exact"; "partial" where all was recorded but for what is in `unseen`; "sampled" where sizes and counts are estimates."""
        return str(self._meta["mode"])

    @property
    def unseen(self) -> list[Unseen]:
        """What of the program's memory is not seen, as far as that is known: an allocator in a library, for one."""
        return [Unseen(**cause) for cause in self._meta["unseen"]]

    @property
    def meta(self) -> dict[str, Any]:
        """Who was traced, when and how, and what is missing, by the names of `report --format json`."""
        return dict(self._meta)

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame with a row for each group of blocks that are alike: domain, filename, lineno and function of the most recent
        frame, thread (of live blocks), size (bytes of all), count. ImportError without pandas."""
        import numpy
        import pandas

        columns = self._native.columns()
        frame = {}
        for name in _COLUMNS:
            if name in _NUMBERS:
                frame[name] = numpy.frombuffer(columns[name], dtype="<i8")
            else:
                codes, texts = columns[name]
                frame[name] = pandas.Categorical.from_codes(numpy.frombuffer(codes, dtype="<i4"), texts)
        return pandas.DataFrame(frame)

    def to_arrow(self) -> pyarrow.Table:
        """The same as an Arrow table, texts as dictionaries. ImportError without pyarrow."""
        import pyarrow
        import pyarrow.compute

        columns = self._native.columns()
        table = {}
        for name in _COLUMNS:
            if name in _NUMBERS:
                table[name] = _arrow(pyarrow.int64(), columns[name])
            else:
                codes, texts = columns[name]
                # Codes of -1 stand for nothing.
                indices = _arrow(pyarrow.int32(), codes)
                indices = pyarrow.compute.if_else(pyarrow.compute.less(indices, 0), None, indices)
                table[name] = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(texts, pyarrow.string()))
        return pyarrow.table(table)

    def __repr__(self) -> str:
        pid, taken_at = self._meta["pid"], self._meta["taken_at"]
        unseen = "".join(f"; not seen: {cause.name}" for cause in self.unseen)
        view = f"{name_of(self.domain)}, {self.at}, {self.mode}"
        return f"<heapline.Snapshot of process {pid}, {taken_at}: {view}{unseen}>"

    def _warn(self) -> None:
        for text in self._native.take_warnings():
            warnings.warn(text, RuntimeWarning, stacklevel=3)


_COLUMNS = ("domain", "filename", "lineno", "function", "thread", "size", "count")
_NUMBERS = ("lineno", "size", "count")


def _arrow(kind: pyarrow.DataType, data: bytes) -> pyarrow.Array:
    import pyarrow

    return pyarrow.Array.from_buffers(kind, len(data) * 8 // kind.bit_width, [None, pyarrow.py_buffer(data)])


def load(path: Union[str, os.PathLike[str]]) -> Snapshot:
    """Reads a snapshot that the aggregator, `take_snapshot` or a `Tracker` wrote, of any kind of program.

    OSError where the file cannot be opened, ValueError where it is no snapshot or a damaged one. RuntimeError where the package has
    no compiled half (see `heapline.start`).
    """
    require_native()
    from heapline import _native

    return Snapshot(_native.Snapshot.load(os.fspath(path)))
