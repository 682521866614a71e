"""Runs of a subject: alone, under `aggregator run`, and with an attach.

Maps of JIT names are removed before any report: the names are to be in the snapshot.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[3]
FILES = ROOT / "tests/world/subjects/stacks"
PATIENCE = 300  # seconds; longest wait for anything
KEPT_FRAMES = 1000  # so that a deep traceback is shown down to its root
ROWS = 10


class Failure(Exception):
    """A run that says nothing about stacks, in a sentence."""


class Heapline:
    """The built programs, with a symbol cache of their own."""

    def __init__(self, folder, cache):
        self.aggregator, self.report_program = str(folder / "aggregator"), str(folder / "report")
        self.cache = cache

    def ctl(self, pid, *words, must=True):
        asked = subprocess.run([self.aggregator, "ctl", str(pid), *words], capture_output=True, text=True)
        if must and asked.returncode:
            raise Failure(f"ctl {words[0]}: {asked.stderr.strip()}")
        return asked.returncode == 0

    def report(self, snapshot, *options, limit=ROWS, cache=None):
        command = [self.report_program, snapshot, "--format", "json", "--by", "traceback", "--limit", str(limit), *options]
        environment = os.environ | {"XDG_CACHE_HOME": str(cache or self.cache)}
        asked = subprocess.run(command, capture_output=True, text=True, env=environment)
        if asked.returncode:
            raise Failure(f"report: {asked.stderr.strip()}")
        return json.loads(asked.stdout)


class Scratch:
    """An empty folder and a free port, with the subject's files."""

    def __init__(self, subject, base):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="stacks-", dir=base))
        self.folder.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        for name in subject.files:
            (self.folder / name).write_text(self.fill((FILES / name).read_text()))
        if subject.prepare:
            done = subprocess.run(["sh", "-e", "-c", self.fill(subject.prepare)], cwd=self.folder, capture_output=True, text=True)
            if done.returncode:
                raise Failure(f"its preparation failed: {(done.stderr or done.stdout).strip()[-200:]}")

    def fill(self, text):
        return text.replace("{scratch}", str(self.folder)).replace("{port}", str(self.port))

    def start(self, subject, before=()):
        """Starts the subject. Output goes to files, so that no child that lives on keeps a pipe open."""
        self.stdout, self.stderr = open(self.folder / ".stdout", "w+b"), open(self.folder / ".stderr", "w+b")
        argv = [*before, *map(self.fill, subject.argv)]
        environment = os.environ | {"LC_ALL": "C.UTF-8"} | subject.environment
        return subprocess.Popen(argv, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
                                stdout=self.stdout, stderr=self.stderr)

    def forget_names(self, *pids):
        """Removes the maps of JIT names that processes have left in /tmp."""
        for pid in pids:
            pathlib.Path(f"/tmp/perf-{pid}.map").unlink(missing_ok=True)

    def output(self, stream):
        stream.seek(0)
        text = stream.read().decode(errors="replace")
        return text.replace(str(self.folder), "SCRATCH").replace(str(self.port), "PORT")

    def map_names(self, subject, pid):
        if subject.map_names:
            subprocess.run([word.replace("{pid}", str(pid)) for word in subject.map_names], check=True, stdout=subprocess.DEVNULL)

    def wait_until_ready(self, process):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if process.poll() is not None:
                raise Failure(f"ended at once: {self.output(self.stderr).strip()[-200:]}")
            if "starting up" not in self.output(self.stderr)[-200:]:  # PostgreSQL turns an early client away
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            time.sleep(0.05)
        raise Failure("was never ready")


def children(pid):
    with contextlib.suppress(OSError):
        return [int(child) for task in os.listdir(f"/proc/{pid}/task")
                for child in pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return []


def wait_for(what, probe):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := probe():
            return value
        time.sleep(0.02)
    raise Failure(f"waited in vain for {what}")


def first_child(pid):
    """The first child, which does the work of most servers, or the process itself."""
    return next(iter(children(pid)), pid)


def renderer(pid):
    """Chromium's process of a page."""
    below = [pid]
    for one in below:
        below.extend(children(one))
    command = lambda one: pathlib.Path(f"/proc/{one}/cmdline").read_bytes()
    return next((one for one in below if b"--type=renderer" in command(one)), pid)


@dataclass
class Run:
    status: int
    output: str
    snapshots: list = field(default_factory=list)


def finish(process):
    """The exit status, with 128 + N for signal N, as a shell and the aggregator tell of it."""
    try:
        status = process.wait(PATIENCE)
        return 128 - status if status < 0 else status
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Failure(f"had not ended after {PATIENCE} seconds") from None


def end(process):
    """Ends a process that a failure has left behind, and its children."""
    if process.poll() is None:
        for pid in [*children(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def serve(subject, scratch, process, target, opened=lambda pid: None, loaded=lambda pid: None):
    """A server's life: ready, load, end. `opened` and `loaded` are given the process that does the work."""
    scratch.wait_until_ready(process)
    worker = subject.worker or first_child
    served = contextlib.contextmanager(subject.load)
    with served(scratch.port, lambda pid: opened(pid or worker(target))) as (answers, pid):
        loaded(pid or worker(target))
    os.kill(target, subject.stop)
    return Run(finish(process), json.dumps(answers, default=str))


def alone(subject, base):
    scratch = Scratch(subject, base)
    process = scratch.start(subject)
    try:
        if subject.load:
            return serve(subject, scratch, process, process.pid)
        return Run(finish(process), scratch.output(scratch.stdout))
    finally:
        end(process)
        scratch.forget_names(process.pid)


def traced(subject, base, heapline):
    """Runs the subject under `aggregator run`. Snapshots: of the command, then of its children; of a server's worker."""
    scratch = Scratch(subject, base)
    snapshots = pathlib.Path(tempfile.mkdtemp(prefix="snapshots-", dir=base))
    path, live = snapshots / "out.snap.zst", snapshots / "live.snap.zst"
    options = ["--nframe", str(KEPT_FRAMES), *subject.options]
    process = scratch.start(subject, [heapline.aggregator, "run", "-o", str(path), *options, "--"])

    def snapshot(pid):
        scratch.map_names(subject, pid)
        heapline.ctl(pid, "snapshot", "-o", str(live))

    # A short command may have ended already.
    target = wait_for("the command", lambda: -1 if process.poll() is not None else next(iter(children(process.pid)), None))
    try:
        if subject.load:
            run = serve(subject, scratch, process, target, loaded=snapshot)
            run.snapshots = [live]
            return run
        return Run(finish(process), scratch.output(scratch.stdout), [path, *sorted((snapshots / "out").glob("*.snap.zst"))])
    finally:
        end(process)
        scratch.forget_names(target)


def attached(subject, base, heapline):
    """Runs the server alone, and traces its worker from the first question of the load to the last answer."""
    scratch = Scratch(subject, base)
    snapshot = pathlib.Path(tempfile.mkdtemp(prefix="snapshots-", dir=base)) / "attach.snap.zst"
    process = scratch.start(subject)
    aggregators = []

    def attach(pid):
        command = [heapline.aggregator, "--attach", str(pid), "-o", str(snapshot), "--nframe", str(KEPT_FRAMES)]
        aggregators.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.PIPE, text=True))

        def is_attached():
            if aggregators[0].poll() is not None:
                raise Failure(f"attach: {aggregators[0].stderr.read().strip()}")
            return heapline.ctl(pid, "stats", must=False)

        wait_for("the attach", is_attached)

    def detach(pid):
        scratch.map_names(subject, pid)
        heapline.ctl(pid, "detach")
        finish(aggregators[0])

    try:
        run = serve(subject, scratch, process, process.pid, opened=attach, loaded=detach)
        run.snapshots = [snapshot]
        return run
    finally:
        end(process)
        scratch.forget_names(process.pid)
