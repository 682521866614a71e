"""The package under mypy's strict rules, and its types as its users see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import python

PACKAGE = Path(__file__).parents[1]

USE = """
import heapline

snapshot = heapline.load("x.snap.zst")
reveal_type(snapshot.statistics("lineno")[0].size)
reveal_type(snapshot.compare_to(snapshot, "lineno")[:3])
reveal_type(snapshot.traces[0].traceback[0].function)
reveal_type(heapline.get_traced_memory())
with heapline.Tracker("x.snap.zst") as tracker:
    reveal_type(tracker)
"""


def test_the_package_is_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    ran = python("-m", "mypy", "--cache-dir", str(tmp_path), "--config-file", "pyproject.toml", cwd=PACKAGE, check=False)
    assert ran.returncode == 0, ran.stdout


def test_users_see_the_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(USE)
    shown = python("-m", "mypy", "--strict", "use.py", cwd=tmp_path).stdout
    revealed = [line.split('"')[1].replace("builtins.", "") for line in shown.splitlines() if '"' in line]
    revealed = [name.replace("Union[str, None]", "str | None") for name in revealed]
    assert revealed == [
        "int",
        "heapline.snapshot.Rows[tracemalloc.StatisticDiff]",
        "str | None",
        "tuple[int, int]",
        "heapline.tracing.Tracker",
    ]
