"""Tracing this process: an aggregator of its own attaches to it, or one that is there already is asked.

`start` in a plain interpreter starts the aggregator as a child, which borrows a thread for a few milliseconds and leads
the allocators to the collector; `stop` has it leave again. Under `aggregator run`, or when somebody has attached, that
aggregator answers, and `stop` leaves it alone. What is asked makes no Python objects on the way, so it is not counted.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Optional, Union

from heapline._platform import program, require_native, unsupported
from heapline.domains import PYTHON, Domain, name_of
from heapline.snapshot import DomainFigures, Snapshot, load

__all__ = [
    "Tracker",
    "clear_traces",
    "get_domains",
    "get_traceback_limit",
    "get_traced_memory",
    "is_tracing",
    "mark",
    "pause",
    "reset_peak",
    "start",
    "stop",
    "take_snapshot",
    "track",
    "untrack",
]

_MAX_NFRAME = 65535


class _Session:
    """What answers for this process: an aggregator of ours, or another's."""

    def __init__(self, aggregator: Optional[subprocess.Popen[str]]) -> None:
        self.pid = os.getpid()
        self.aggregator = aggregator


_lock = threading.RLock()
_session: Optional[_Session] = None


def start(nframe: int = 64, *, output: Union[None, str, os.PathLike[str]] = None) -> None:
    """Traces this process from now on, with `nframe` frames kept per traceback; without effect where it is traced already.

    Blocks from before are not known. output: where the last snapshot goes when tracing ends, however it ends; nowhere by default.

    ValueError for an nframe outside 1..65535. RuntimeError where this cannot be traced, with the reason: an unsupported platform, a
    debugger, ptrace forbidden (in a container it takes CAP_SYS_PTRACE).
    """
    global _session
    if not 1 <= nframe <= _MAX_NFRAME:
        raise ValueError(f"the number of frames must be in range [1; {_MAX_NFRAME}]")
    reason = unsupported()
    if reason is not None:
        raise RuntimeError(f"heapline cannot trace this process: {reason}")
    require_native()
    with _lock:
        if not is_tracing():
            _session = _Session(_attach(nframe, output))


def stop() -> None:
    """Ends tracing; the process is as it was. Without effect where it is not traced; another's aggregator is left alone."""
    global _session
    with _lock:
        session, _session = _own(), None
        if session is None or session.aggregator is None:
            return
        # Its end is what counts: it may have gone on its own.
        with contextlib.suppress(RuntimeError):
            _ask("detach")
        _reap(session.aggregator)
        _allow_tracing_by(None)


def is_tracing() -> bool:
    """Whether somebody traces this process: we, or an aggregator that it was started under or attached to."""
    with _lock:
        return _traced() is not None


def get_traceback_limit() -> int:
    """Frames kept per traceback. RuntimeError where the process is not traced."""
    return _figures()[0]


def get_domains() -> dict[str, DomainFigures]:
    """The sums of each domain at this moment, by its name; one consistent cut. RuntimeError where the process is not traced."""
    return {row[0]: DomainFigures(*row) for row in _figures()[1]}


def get_traced_memory(domain: Domain = PYTHON) -> tuple[int, int]:
    """Bytes live in a domain at this moment, and at its peak. (0, 0) where the process is not traced, as in tracemalloc."""
    if not is_tracing():
        return (0, 0)
    name = name_of(domain)
    for row in _figures()[1]:
        if row[0] == name:
            return (row[1], row[2])
    return (0, 0)


def reset_peak() -> None:
    """The peak becomes what is live now, in all domains; without effect where the process is not traced."""
    if is_tracing():
        _ask("reset-peak")


def mark(text: str) -> None:
    """Puts a mark into the history: `report SNAP --at mark:TEXT` shows the memory at this moment. Without effect where the process
    is not traced.

    ValueError for a text without a letter. RuntimeError where no history is recorded.
    """
    if not text.strip():
        raise ValueError("a mark needs a text")
    if is_tracing():
        _ask("mark", text=text)


def track(pool: str, address: int, size: int) -> None:
    """Records that this program has taken `size` bytes at `address` from a pool of its own: a domain of its own, `pool:NAME`. Nothing
    is read at the address, and a second block at the same address of the pool takes the place of the first. Without effect where
    the process is not traced.
    """
    require_native()
    from heapline import _native

    _native.track(pool, address, size)


def untrack(pool: str, address: int) -> None:
    """Records that the block at `address` is given back to its pool."""
    require_native()
    from heapline import _native

    _native.untrack(pool, address)


@contextlib.contextmanager
def pause() -> Iterator[None]:
    """Inside a `with`, what this thread allocates does not count; what it frees does. Without effect where the process is not traced."""
    require_native()
    from heapline import _native

    _native.pause()
    try:
        yield
    finally:
        _native.resume()


def clear_traces() -> None:
    """Forgets all traces; tracing goes on. Without effect where the process is not traced."""
    if is_tracing():
        _ask("clear-traces")


def take_snapshot() -> Snapshot:
    """A snapshot of this moment, all domains at one instant. RuntimeError where the process is not traced."""
    path = _take()
    try:
        return load(path)
    finally:
        os.unlink(path)


class Tracker:
    """Traces what happens inside a `with`, and writes a snapshot at its end: live blocks, peak and totals since its beginning.

        with heapline.Tracker("out.snap.zst"):
            ...

    The file is written however the process ends meanwhile. Where the process is traced already, the snapshot is that aggregator's,
    with all that it knows, and tracing goes on behind the `with`.
    """

    def __init__(self, file_name: Union[str, os.PathLike[str]], *, nframe: int = 64) -> None:
        self._path = os.path.abspath(os.fspath(file_name))
        self._nframe = nframe
        self._owns = False

    def __enter__(self) -> Tracker:
        with _lock:
            self._owns = not is_tracing()
            start(self._nframe, output=self._path)
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if self._owns:
            stop()
        else:
            _ask("snapshot", self._path)


def _attach(nframe: int, output: Union[None, str, os.PathLike[str]]) -> Optional[subprocess.Popen[str]]:
    """Starts an aggregator and waits until it traces us."""
    command = [program("aggregator"), "--attach", str(os.getpid()), "--nframe", str(nframe)]
    command += ["-o", os.devnull if output is None else os.path.abspath(os.fspath(output))]
    # Yama lets only parents attach: for the moment until its number is known, any process of this user.
    _allow_tracing_by(0)
    try:
        aggregator = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A terminal's Ctrl-C is for us: what we do of it is to be seen.
            start_new_session=True,
        )
    except BaseException:
        _allow_tracing_by(None)
        raise
    _allow_tracing_by(aggregator.pid)
    assert aggregator.stderr is not None
    said = aggregator.stderr.readline()
    if said.startswith("heapline: attached"):
        return aggregator
    said += aggregator.stderr.read()
    _reap(aggregator)
    _allow_tracing_by(None)
    raise RuntimeError(f"heapline cannot trace this process: {said.strip() or 'its aggregator was killed'}")


def _reap(aggregator: subprocess.Popen[str]) -> None:
    # What it says at its end would fill the pipe one day.
    if aggregator.stderr is not None:
        aggregator.stderr.read()
        aggregator.stderr.close()
    aggregator.wait()


def _own() -> Optional[_Session]:
    """The session that this process has; a forked child has none."""
    return _session if _session is not None and _session.pid == os.getpid() else None


def _traced() -> Optional[_Session]:
    """The session that answers now, with that of somebody who has come or gone meanwhile."""
    global _session
    session = _own()
    if session is not None and session.aggregator is not None and session.aggregator.poll() is None:
        return session
    if _is_answered():
        _session = _Session(None)
        return _session
    _session = None
    return None


def _is_answered() -> bool:
    """Whether an aggregator answers for this process. A socket alone says nothing: that of a killed aggregator stays."""
    try:
        from heapline import _native
    except ImportError:
        return False
    return _native.is_answered(os.getpid())


def _figures() -> tuple[int, list[tuple[str, int, int, int, int, int, int]]]:
    from heapline import _native

    _require_tracing()
    return _native.figures(os.getpid())


def _ask(what: str, output: Optional[str] = None, text: Optional[str] = None) -> None:
    from heapline import _native

    _native.ask(os.getpid(), what, output, text)


def _take() -> str:
    """A snapshot of this moment in a file, which the caller removes."""
    _require_tracing()
    # Memory, where there is such a place: the aggregator makes sure that a file is on the disk before it says so.
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    descriptor, path = tempfile.mkstemp(".snap.zst", "heapline-", folder)
    os.close(descriptor)
    try:
        _ask("snapshot", path)
    except BaseException:
        os.unlink(path)
        raise
    return path


def _require_tracing() -> None:
    if not is_tracing():
        raise RuntimeError("heapline must be tracing this process: call heapline.start() first")


def _allow_tracing_by(pid: Optional[int]) -> None:
    from heapline import _native

    _native.allow_tracing_by(pid)


# The aggregator would see the end by itself; but whoever waits for us need not wait for it.
atexit.register(stop)
