"""The magics, in an IPython without a terminal."""

from __future__ import annotations

import pytest

import heapline

pytest.importorskip("IPython")


@pytest.fixture(scope="module")
def shell():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "heapline")
    yield shell
    InteractiveShell.clear_instance()


def shown(shell, code):
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        shell.run_cell(code)
    return captured


def test_a_cell(shell):
    captured = shown(shell, "%%heapline -n 2\nrows = [bytes(1000) for _ in range(1000)]\n<gone>".replace("<gone>", "len(bytearray(5_000_000))"))
    (output,) = [output for output in captured.outputs if "text/html" in output.data]
    text, html = output.data["text/plain"], output.data["text/html"]
    assert "python memory: current +10" in text and "peak +5" in text
    assert "len(bytearray(5_000_000))" in text and "rows = [bytes(1000) for _ in range(1000)]" in text
    assert "<table>" in html and "len(bytearray(5_000_000))" in html
    assert len(shell.user_ns["rows"]) == 1000
    assert not heapline.is_tracing()


def test_a_line(shell):
    captured = shown(shell, "%heapline block = bytearray(3_000_000)")
    (output,) = captured.outputs
    assert "      block = bytearray(3_000_000)" in output.data["text/plain"]
    assert "in <module>" in output.data["text/plain"]
    assert len(shell.user_ns["block"]) == 3_000_000


def test_html_is_escaped(shell):
    captured = shown(shell, "%%heapline\nmarkup = '<b>&' * 1_000_000")
    (output,) = [output for output in captured.outputs if "text/html" in output.data]
    assert "&lt;b&gt;&amp;" in output.data["text/html"]


def test_a_snapshot_and_another_domain(shell, tmp_path):
    shown(shell, f"%%heapline -d native -o {tmp_path}/cell.snap.zst\nblock = bytearray(3_000_000)")
    assert heapline.load(tmp_path / "cell.snap.zst").domains["native"].current > 3_000_000


def test_a_cell_that_raises(shell):
    captured = shown(shell, "%%heapline\n1 / 0")
    assert "ZeroDivisionError" in captured.stdout + captured.stderr
    assert not heapline.is_tracing()


def test_wrong_usage(shell):
    captured = shown(shell, "%%heapline -d bogus\nblock = 1")
    assert "bogus" in captured.stdout + captured.stderr
