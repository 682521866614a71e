"""Tracing this very process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading

import pytest
from conftest import python

import heapline


@pytest.fixture
def traced():
    heapline.start()
    yield
    heapline.stop()


@pytest.mark.usefixtures("traced")
def test_figures_are_exact():
    before = heapline.get_traced_memory()[0]
    block = bytearray(1_000_000)
    current, peak = heapline.get_traced_memory()
    assert 1_000_000 < current - before < 1_001_000
    del block
    after, peak = heapline.get_traced_memory()
    assert after - before < 1000
    assert peak - before > 1_000_000
    heapline.reset_peak()
    assert heapline.get_traced_memory()[1] - before < 10_000
    assert heapline.get_traced_memory("python")[1] == heapline.get_traced_memory(heapline.PYTHON)[1]
    assert heapline.get_traced_memory("track:5") == (0, 0)


@pytest.mark.usefixtures("traced")
def test_a_mark_is_in_the_history(tmp_path):
    block = bytearray(7_000_000)
    heapline.mark("deploy 42")
    del block
    snapshot = tmp_path / "marked.snap.zst"
    heapline.take_snapshot().dump(snapshot)
    with pytest.raises(ValueError, match="a mark needs a text"):
        heapline.mark(" ")
    report = [sys.executable, "-m", "heapline", "report", str(snapshot), "--at", "mark:deploy", "--format", "json"]
    told = json.loads(subprocess.run(report, check=True, capture_output=True).stdout)
    assert told["at"] == "instant" and told["total"]["size"] > 7_000_000


@pytest.mark.usefixtures("traced")
def test_a_pool_of_the_program_is_a_domain():
    heapline.track("rows", 0x1000, 500)
    heapline.track("rows", 0x2000, 70)
    heapline.untrack("rows", 0x1000)
    rows = heapline.get_domains()["pool:rows"]
    assert (rows.current, rows.peak, rows.blocks, rows.allocs) == (70, 570, 1, 2)
    assert heapline.get_traced_memory("pool:rows") == (70, 570)
    heapline.untrack("rows", 0x2000)


@pytest.mark.usefixtures("traced")
def test_what_is_allocated_in_a_pause_does_not_count():
    before = heapline.get_traced_memory()[0]
    with heapline.pause():
        paused = bytearray(9_000_000)
    assert heapline.get_traced_memory()[0] - before < 100_000
    counted = bytearray(2_000_000)
    del paused
    assert 2_000_000 < heapline.get_traced_memory()[0] - before < 2_100_000
    del counted


def test_pools_and_pauses_are_nothing_where_nobody_traces():
    heapline.track("rows", 0x1000, 500)
    heapline.untrack("rows", 0x1000)
    with heapline.pause():
        assert not heapline.is_tracing()


@pytest.mark.usefixtures("traced")
def test_domains_are_of_one_instant():
    block = bytearray(10_000_000)
    domains = heapline.get_domains()
    assert domains["python"].current > len(block) and domains["native"].current > len(block)
    assert domains["python"].allocs - domains["python"].frees == domains["python"].blocks


@pytest.mark.usefixtures("traced")
def test_a_snapshot_names_the_line():
    block = bytearray(3_000_000)
    first = heapline.take_snapshot().statistics("lineno")[0]
    assert os.path.samefile(first.traceback[0].filename, __file__)
    assert first.size > len(block)


@pytest.mark.usefixtures("traced")
def test_clear_traces():
    block = bytearray(3_000_000)
    heapline.clear_traces()
    assert heapline.get_traced_memory()[0] < len(block)
    assert heapline.is_tracing()


def test_start_and_stop():
    assert not heapline.is_tracing()
    assert heapline.get_traced_memory() == (0, 0)
    heapline.stop()
    for call in (heapline.take_snapshot, heapline.get_traceback_limit, heapline.get_domains):
        with pytest.raises(RuntimeError, match=r"heapline.start\(\)"):
            call()
    for _ in range(3):
        heapline.start(5)
        heapline.start(7)
        assert heapline.is_tracing() and heapline.get_traceback_limit() == 5
        heapline.stop()
        assert not heapline.is_tracing()
    for wrong in (0, 65536):
        with pytest.raises(ValueError, match="65535"):
            heapline.start(wrong)


@pytest.mark.usefixtures("traced")
def test_any_thread_may_ask():
    found = []
    threads = [threading.Thread(target=lambda: found.append(len(heapline.take_snapshot().traces))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and min(found) > 0


@pytest.mark.usefixtures("traced")
def test_a_forked_child_is_not_traced():
    pid = os.fork()
    if pid == 0:
        os._exit(1 if heapline.is_tracing() else 0)
    assert os.waitpid(pid, 0)[1] == 0
    assert heapline.is_tracing()


def test_the_socket_of_a_killed_aggregator_is_no_trace(tmp_path):
    """A process may have the number of a process whose aggregator was killed."""
    script = """
import os, socket, heapline
folder = f"/tmp/heapline-{os.geteuid()}"
os.makedirs(folder, mode=0o700, exist_ok=True)
left = f"{folder}/{os.getpid()}.sock"
socket.socket(socket.AF_UNIX).bind(left)
assert not heapline.is_tracing() and heapline.get_traced_memory() == (0, 0)
heapline.start()
assert heapline.is_tracing() and heapline.get_traced_memory()[1] > 0
heapline.stop()
assert not heapline.is_tracing()
"""
    python("-c", script, cwd=tmp_path)


def test_tracker(tmp_path):
    with heapline.Tracker(tmp_path / "out.snap.zst", nframe=3):
        assert heapline.is_tracing()
        block = bytearray(2_000_000)
    assert not heapline.is_tracing()
    snapshot = heapline.load(tmp_path / "out.snap.zst")
    assert snapshot.traceback_limit == 3 and snapshot.meta["end"] == "detached"
    assert snapshot.statistics("lineno")[0].size > len(block)


@pytest.mark.usefixtures("traced")
def test_tracker_in_a_traced_process(tmp_path):
    with heapline.Tracker(tmp_path / "out.snap.zst"):
        block = bytearray(2_000_000)
    assert heapline.is_tracing()
    assert heapline.load(tmp_path / "out.snap.zst").size > len(block)


def test_a_tracker_writes_however_the_process_ends(tmp_path):
    code = "import heapline, os, signal\nwith heapline.Tracker('out.snap.zst'):\n b = bytearray(2_000_000)\n os.kill(os.getpid(), 9)"
    assert python("-c", code, cwd=tmp_path, check=False).returncode == -9
    # The aggregator outlives it for the moment that the writing takes.
    for _ in range(100):
        if (tmp_path / "out.snap.zst").exists():
            break
        threading.Event().wait(0.05)
    assert heapline.load(tmp_path / "out.snap.zst").size > 2_000_000


def test_the_end_of_the_interpreter_leaves_nothing_behind(tmp_path):
    code = "import heapline\nheapline.start()\nprint(heapline.tracing._session.aggregator.pid)"
    pid = int(python("-c", code, cwd=tmp_path).stdout)
    assert not os.path.exists(f"/proc/{pid}")
    assert list(tmp_path.iterdir()) == []


def test_every_option_with_a_value_is_known_to_have_one(tmp_path):
    from heapline.__main__ import _VALUED

    said = python("-m", "heapline", "run", "--help", cwd=tmp_path).stdout
    valued = re.findall(r"^ +(?:(-\w), )?(--[\w-]+) <", said, re.MULTILINE)
    assert {option for pair in valued for option in pair if option} == _VALUED


def test_run_module_and_report(tmp_path):
    (tmp_path / "app.py").write_text(
        "import heapline, sys\n"
        "block = bytearray(4_000_000)\n"
        "assert heapline.is_tracing() and heapline.get_traced_memory()[0] > 4_000_000\n"
        "heapline.start(); heapline.stop()\n"
        "assert heapline.is_tracing(), 'another has begun it'\n"
        "print(sys.argv)\n"
        "sys.exit(7)\n"
    )
    ran = python("-m", "heapline", "run", "-o", "out.snap.zst", "app.py", "-x", cwd=tmp_path, check=False)
    assert (ran.returncode, ran.stdout) == (7, "['app.py', '-x']\n")
    shown = python("-m", "heapline", "report", "out.snap.zst", "--at", "peak", "--limit", "1", "--source", cwd=tmp_path).stdout
    assert "app.py:2" in shown and "block = bytearray(4_000_000)" in shown
    python("-m", "heapline", "run", "-o", "m.snap.zst", "-m", "json.tool", "--help", cwd=tmp_path)
    assert (tmp_path / "m.snap.zst").exists()


def test_attach(tmp_path):
    code = "import time\ntime.sleep(1)\nkept = bytearray(2_000_000)\ntime.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", code]) as target:
        python("-m", "heapline", "attach", str(target.pid), "--duration", "2.5", "-o", "a.snap.zst", cwd=tmp_path)
        target.kill()
    assert heapline.load(tmp_path / "a.snap.zst").size > 2_000_000


def test_the_usage(tmp_path):
    assert "usage:" in python("-m", "heapline", "--help", cwd=tmp_path).stdout
    wrong = python("-m", "heapline", "bogus", cwd=tmp_path, check=False)
    assert wrong.returncode == 2 and "usage:" in wrong.stderr


def test_an_unsupported_platform_is_named(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(RuntimeError, match="Linux on x86-64, and this is Darwin on arm64"):
        heapline.start()
    assert not heapline.is_tracing()


def test_a_missing_compiled_half_is_named(tmp_path):
    code = (
        "import sys; sys.modules['heapline._native'] = None\n"
        "import heapline\n"
        "for call in (heapline.start, lambda: heapline.load('x')):\n"
        "    try: call()\n"
        "    except RuntimeError as error: print(error)\n"
    )
    assert python("-c", code, cwd=tmp_path).stdout.count("its compiled half cannot be loaded") == 2


def test_what_the_aggregator_refuses_is_said(tmp_path):
    code = (
        "import heapline, subprocess, sys, os\n"
        "import heapline.tracing as tracing\n"
        "tracing.program = lambda name: '/bin/false'\n"
        "try: heapline.start()\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert "its aggregator was killed" in python("-c", code, cwd=tmp_path).stdout
