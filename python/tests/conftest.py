"""What the tests share: real snapshots, and programs that run in an interpreter of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

WORKLOAD = """
import json, collections

def leaf(size):
    return bytearray(size)

def deep(depth, size):
    return leaf(size) if depth == 0 else deep(depth - 1, size)

kept = [deep(depth % 7, 100 + depth % 13) for depth in range(2000)]
table = {str(number): json.loads("[1, 2, %d]" % number) for number in range(500)}
gone = bytearray(5_000_000)
del gone
"""


def python(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the interpreter of the tests."""
    ran = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    if check:
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With "live.snap.zst", taken in the middle of the workload, and "old.snap.zst", taken before."""
    folder = tmp_path_factory.mktemp("snapshots")
    script = folder / "workload.py"
    take = "import heapline\nheapline.start({})\nheapline.take_snapshot().dump({!r})\n"
    script.write_text(
        take.format(8, "old.snap.zst") + WORKLOAD + "heapline.take_snapshot().dump('live.snap.zst')\nheapline.stop()\n"
    )
    python(str(script), cwd=folder)
    return folder


@pytest.fixture(scope="session")
def sampled(folder: Path) -> tuple[Path, Path]:
    """Of the workload, at its end: one sample in 4 KiB, and everything."""
    script = folder / "sampled.py"
    script.write_text(WORKLOAD)
    for name, options in [("sampled", ["--sample", "4K"]), ("exact", [])]:
        run = ["-m", "heapline", "run", *options, "-o", f"{name}.snap.zst", sys.executable, str(script)]
        python(*run, cwd=folder)
    return folder / "sampled.snap.zst", folder / "exact.snap.zst"
