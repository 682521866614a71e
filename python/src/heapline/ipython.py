"""IPython and Jupyter: `%load_ext heapline`, then `%%heapline` on a cell.

The cell's figures and the lines that it took its memory from, as a table in a notebook and as text in a terminal.
"""

from __future__ import annotations

import html
import os
import shlex
from dataclasses import dataclass
from typing import Any, Optional

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from heapline import tracing
from heapline._sizes import format_size
from heapline._text import Line, lines_of, shown
from heapline.snapshot import load


@dataclass(frozen=True)
class Cell:
    """What a cell did to the memory of one domain; sizes are bytes beyond what lived before it."""

    domain: str
    current: int
    peak: int
    allocs: int
    allocated_bytes: int
    at_peak: list[Line]
    kept: list[Line]

    def _figures(self) -> list[tuple[str, str]]:
        return [
            ("current", format_size(self.current, sign=True)),
            ("peak", format_size(self.peak, sign=True)),
            ("allocated", f"{format_size(self.allocated_bytes)} in {self.allocs} blocks"),
        ]

    def _tables(self) -> list[tuple[str, list[Line]]]:
        return [("live at the peak", self.at_peak), ("kept", self.kept)]

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in self._figures())
        lines = [f"{self.domain} memory: {figures}"]
        for heading, rows in self._tables():
            if rows:
                lines += [f"{heading}:", *shown(rows)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        figures = " &middot; ".join(f"{name} <b>{html.escape(value)}</b>" for name, value in self._figures())
        parts = [f"<div><i>{html.escape(self.domain)} memory</i>: {figures}</div>"]
        for heading, rows in self._tables():
            if rows:
                body = "".join(_row(row, rows[0].size) for row in rows)
                head = f"<tr><th>{heading}</th><th>blocks</th><th style='text-align:left'>line</th></tr>"
                parts.append(f"<table>{head}{body}</table>")
        return "".join(parts)


def _row(line: Line, largest: int) -> str:
    share = 100 * line.size // max(largest, 1)
    bar = f"background:linear-gradient(to left,rgba(70,130,180,.35) {share}%,transparent {share}%)"
    source = f"<br><code>{html.escape(line.source)}</code>" if line.source else ""
    cells = [
        f"<td style='text-align:right;{bar}'>{format_size(line.size)}</td>",
        f"<td style='text-align:right'>{line.blocks}</td>",
        f"<td style='text-align:left'>{html.escape(line.place)}{source}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


@magics_class
class HeaplineMagics(Magics):
    """`%%heapline` and `%heapline`."""

    @magic_arguments()
    @argument("-n", "--limit", type=int, default=10, help="lines shown (default: 10)")
    @argument("-d", "--domain", default="python", help="python (default), native, mmap or track:N")
    @argument("--nframe", type=int, default=64, help="frames kept per traceback (default: 64)")
    @argument("-o", "--output", default=None, help="write the snapshot to this file too")
    @argument("statement", nargs="*", help="the code, of %%heapline as a line magic")
    @line_cell_magic
    def heapline(self, line: str, cell: Optional[str] = None) -> None:
        """Runs the cell traced, and shows what it took: current, peak, top lines."""
        arguments = parse_argstring(self.heapline, line)
        code = cell if cell is not None else " ".join(arguments.statement)
        if cell is not None and arguments.statement:
            raise UsageError(f"%%heapline takes options, not {shlex.join(arguments.statement)}")
        starts_here = not tracing.is_tracing()
        try:
            tracing.start(arguments.nframe)
        except (RuntimeError, ValueError) as error:
            raise UsageError(str(error)) from None
        try:
            self._run(code, arguments)
        finally:
            if starts_here:
                tracing.stop()

    def _run(self, code: str, arguments: Any) -> None:
        before_file = tracing._take()
        try:
            tracing.reset_peak()
            before = tracing.get_domains().get(arguments.domain)
            # What it raises has been shown.
            assert self.shell is not None
            if not self.shell.run_cell(code).success:
                return
            after = tracing.get_domains().get(arguments.domain)
            now = tracing.take_snapshot()
            if arguments.output is not None:
                now.dump(os.path.expanduser(arguments.output))
            if after is None:
                raise UsageError(f"nothing was allocated in domain {arguments.domain!r}")
            old, new = load(before_file).view(arguments.domain), now.view(arguments.domain)
        finally:
            os.unlink(before_file)
        first = before or after._replace(current=0, allocs=0, allocated_bytes=0)
        peak = after.peak - first.current
        at_peak = new.view(at="peak").compare_to(old, "lineno")
        cell = Cell(
            domain=arguments.domain,
            current=after.current - first.current,
            peak=peak,
            allocs=after.allocs - first.allocs,
            allocated_bytes=after.allocated_bytes - first.allocated_bytes,
            at_peak=lines_of(at_peak, peak // 1000, arguments.limit),
            kept=lines_of(new.compare_to(old, "lineno"), peak // 1000, arguments.limit),
        )
        # A cell that runs in a cell has the only result.
        display(cell)


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext heapline` calls."""
    shell.register_magics(HeaplineMagics)
