"""The README's examples, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import python

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


PROGRAMS = [block for block in blocks("python") if "import pytest" not in block]


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_python(program: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(program)
    assert python("example.py", cwd=tmp_path).stdout


def test_pytest(pytester: pytest.Pytester) -> None:
    (tests,) = [block for block in blocks("python") if "import pytest" in block]
    pytester.makepyfile(test_limits=tests)
    pytester.runpytest_subprocess("--heapline").assert_outcomes(passed=2)


def test_ipython(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    (session,) = blocks("ipython")
    (tmp_path / "session.ipy").write_text(session)
    shown = python("-m", "IPython", "--no-banner", "session.ipy", cwd=tmp_path).stdout
    assert "python memory: current +" in shown and "rows = [bytes(1000) for _ in range(1000)]" in shown
