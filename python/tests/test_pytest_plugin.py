"""The plugin, on tests of its own."""

from __future__ import annotations

import importlib.util

import pytest

LIMITS = """
    import asyncio
    import unittest
    import pytest

    kept, cache = [], {}

    @pytest.mark.limit_memory("24 MB")
    def test_small():
        assert len([bytes(1000) for _ in range(1000)]) == 1000

    @pytest.mark.limit_memory("24 MB")
    def test_large():
        rows = bytearray(30_000_000)

    def keep():
        kept.append(bytearray(2_000_000))

    @pytest.mark.limit_leaks("1 MB", warmups=2)
    def test_leaks():
        keep()

    def test_how_often_it_ran():
        assert len(kept) == 3

    @pytest.mark.limit_leaks("1 MB")
    def test_fills_a_cache():
        cache.setdefault(0, bytearray(2_000_000))

    @pytest.mark.limit_leaks("1 MB")
    def test_keeps_what_it_frees(tmp_path):
        cache[1] = bytearray(2_000_000)

    @pytest.mark.limit_memory("1 MB")
    class Case(unittest.TestCase):
        def test_large_case(self):
            rows = bytearray(2_000_000)

    @pytest.mark.limit_memory("1 MB")
    def test_fails_anyway():
        rows = bytearray(2_000_000)
        assert not rows

    @pytest.mark.limit_memory("1 MB")
    def test_skips():
        pytest.skip("so be it")
"""
PASSED, FAILED = 4, 4


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_limits(pytester: pytest.Pytester, options: list[str]) -> None:
    pytester.makepyfile(LIMITS)
    if options:
        pytest.importorskip("xdist")
        options = [*options, "--dist", "loadfile"]
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=PASSED, failed=FAILED, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "limit_memory: at its peak the test had 28.* MiB more than before, its limit is 24.0 MiB (python memory)",
            "most of it then was from:",
            "  28.6 MiB in *: test_limits.py:*, in test_large",
            "      rows = bytearray(30_000_000)",
            "limit_leaks: the test keeps 1953 KiB from one place, its limit is 1024 KiB (python memory)",
            "  1953 KiB in *: test_limits.py:*, in keep",
            "      kept.append(bytearray(2_000_000))",
            "    called from test_limits.py:*, in test_leaks",
            "limit_memory: * its limit is 1024 KiB*",
        ],
        consecutive=False,
    )
    assert "heapline/tracing.py" not in result.stdout.str()
    assert "called from /" not in result.stdout.str(), "pytest itself is no caller of interest"


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_the_summary(pytester: pytest.Pytester, options: list[str]) -> None:
    pytester.makepyfile(
        """
        def test_small(): pass
        def test_large(): bytearray(30_000_000)
        def test_middle(): bytearray(3_000_000)
        """
    )
    if options:
        pytest.importorskip("xdist")
    result = pytester.runpytest_subprocess("--heapline", "--heapline-top=2", *options)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["*hungriest tests (heapline)*", "*28.6 MiB*::test_large", "*29[34][0-9] KiB*::test_middle"], consecutive=False
    )
    assert "::test_small" not in result.stdout.str()


def test_the_summary_names_lines(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_small(): pass
        def test_large():
            bytearray(30_000_000)
        """
    )
    result = pytester.runpytest_subprocess("--heapline-lines=1", "--heapline-top=1")
    result.stdout.fnmatch_lines(["*::test_large", "*28.6 MiB in *: *:3, in test_large", "*  bytearray(30_000_000)"])


def test_known_leaks_are_let_through(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import heapline
        import pytest

        cache, kept = [], []

        def remember():
            cache.append(bytearray(2_000_000))

        known = heapline.Filter(False, __file__, lineno=7)

        @pytest.mark.limit_leaks("1 MB", filters=[known])
        def test_known():
            remember()

        @pytest.mark.limit_leaks("1 MB", filters=[known])
        def test_unknown():
            kept.append(bytearray(2_000_000))
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["      kept.append(bytearray(2_000_000))"])


def test_native_memory_counts(pytester: pytest.Pytester) -> None:
    # Imported it would be forgotten with all that pytester imports, and numpy cannot be imported twice.
    if importlib.util.find_spec("numpy") is None:
        pytest.skip("numpy is missing")
    pytester.makepyfile(
        """
        import numpy
        import pytest

        @pytest.mark.limit_memory("24 MB")
        def test_array():
            numpy.ones(4_000_000)
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    # Native, but where numpy tells CPython of its arrays.
    result.stdout.fnmatch_lines(["limit_memory: at its peak *", "  30.5 MiB in *", "      a = empty(*"])


@pytest.mark.parametrize(
    "mark",
    ['limit_memory("many")', "limit_memory(5)", 'limit_memory("1 MB", 2)', 'limit_leaks("1 MB", warmups=-1)', "limit_leaks()", 'limit_leaks("1 MB", filters=["*.py"])'],
)
def test_wrong_marks_are_errors(pytester: pytest.Pytester, mark: str) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.{mark}\ndef test_it(): pass\n")
    result = pytester.runpytest_subprocess()
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*UsageError: limit_*"])


def test_where_nothing_can_be_measured(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import platform\nplatform.system = lambda: 'Darwin'\n")
    pytester.makepyfile('import pytest\n@pytest.mark.limit_memory("1 B")\ndef test_it(): bytearray(1000)\n')
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*limits are not checked: heapline cannot trace this process: *Darwin*"])


def test_marks_are_registered(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.limit_memory(size): *", "@pytest.mark.limit_leaks(size, warmups=3, filters=[]): *"])
