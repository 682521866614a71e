"""Snapshots beside tracemalloc itself, which is given the same traces."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

import heapline


@pytest.fixture(scope="module")
def new(folder: Path) -> heapline.Snapshot:
    return heapline.load(folder / "live.snap.zst")


@pytest.fixture(scope="module")
def old(folder: Path) -> heapline.Snapshot:
    return heapline.load(folder / "old.snap.zst")


def twin(snapshot: heapline.Snapshot) -> tracemalloc.Snapshot:
    """tracemalloc's own snapshot of the same traces."""
    return tracemalloc.Snapshot([trace._trace for trace in snapshot.traces], snapshot.traceback_limit)


KEYS = [("filename", False), ("lineno", False), ("traceback", False), ("filename", True), ("lineno", True)]


@pytest.mark.parametrize(("key_type", "cumulative"), KEYS)
def test_statistics_are_tracemallocs(new, key_type, cumulative):
    ours, theirs = new.statistics(key_type, cumulative), twin(new).statistics(key_type, cumulative)
    assert len(ours) == len(theirs) > 5
    assert list(ours) == theirs
    assert [str(row) for row in ours] == [str(row) for row in theirs]


@pytest.mark.parametrize(("key_type", "cumulative"), KEYS)
def test_differences_are_tracemallocs(new, old, key_type, cumulative):
    ours, theirs = new.compare_to(old, key_type, cumulative), twin(new).compare_to(twin(old), key_type, cumulative)
    assert list(ours) == theirs
    assert [str(row) for row in ours] == [str(row) for row in theirs]


FILTERS = [
    [],
    [heapline.Filter(True, "*workload.py")],
    [heapline.Filter(False, "*workload.py")],
    [heapline.Filter(True, "*workload.py", lineno=8)],
    [heapline.Filter(True, "*workload.pyc")],
    [heapline.Filter(True, "*json*", all_frames=True)],
    [heapline.Filter(False, "*json*", all_frames=True), heapline.Filter(True, "*", lineno=-1)],
    [heapline.Filter(True, "*workload.py"), heapline.Filter(True, "*json*"), heapline.Filter(False, "*decoder*")],
    [heapline.DomainFilter(True, 0)],
    [heapline.DomainFilter(False, 0)],
    [heapline.DomainFilter(True, 77), heapline.DomainFilter(False, -1)],
    [heapline.Filter(True, "*workload.py", domain=0)],
    [heapline.Filter(False, "*workload.py", domain=0)],
    [heapline.Filter(False, "*workload.py", domain=5)],
]


@pytest.mark.parametrize("filters", FILTERS, ids=range(len(FILTERS)))
def test_filters_are_tracemallocs(new, filters):
    ours, theirs = new.filter_traces(filters), twin(new).filter_traces(filters)
    assert list(ours.statistics("traceback")) == theirs.statistics("traceback")
    assert ours.count == len(ours.traces) == len(theirs.traces)


def test_filters_follow_each_other(new):
    chained = new.filter_traces([heapline.Filter(True, "*workload.py")]).filter_traces([heapline.Filter(False, "*", 8)])
    theirs = twin(new).filter_traces([heapline.Filter(True, "*workload.py")])
    assert list(chained.statistics("lineno")) == theirs.filter_traces([heapline.Filter(False, "*", 8)]).statistics("lineno")


def test_a_filter_brings_a_domain_into_view(new):
    native = new.filter_traces([heapline.DomainFilter(True, heapline.NATIVE)])
    assert native.size == new.domains["native"].current == new.view(domain=heapline.NATIVE).size
    assert {trace.domain for trace in native.traces} == {heapline.NATIVE}
    python = native.filter_traces([heapline.DomainFilter(False, heapline.NATIVE)])
    assert python.size == 0


def test_errors_are_tracemallocs(new):
    for error, call in [
        (ValueError, lambda snapshot: snapshot.statistics("bogus")),
        (ValueError, lambda snapshot: snapshot.statistics("traceback", cumulative=True)),
        (ValueError, lambda snapshot: snapshot.compare_to(snapshot, "bogus")),
        (TypeError, lambda snapshot: snapshot.filter_traces(7)),
    ]:
        for snapshot in (new, twin(new)):
            with pytest.raises(error):
                call(snapshot)


def test_sums_are_the_files(new):
    python = new.domains["python"]
    assert (new.size, new.count) == (python.current, python.blocks)
    assert sum(trace.size for trace in new.traces) == python.current
    assert new.view(at="peak").size == python.peak
    assert new.view(at="total").size == python.allocated_bytes
    with pytest.raises(ValueError, match="live"):
        _ = new.view(at="peak").traces


def test_what_is_looked_at(new, folder):
    # The interpreter may have loaded a library with an allocator of its own.
    mode = "partial" if new.unseen else "exact"
    assert (new.domain, new.at, new.mode, new.traceback_limit) == (heapline.PYTHON, "live", mode, 8)
    assert [cause._asdict() for cause in new.unseen] == new.meta["unseen"]
    assert new.meta["end"] == "running"
    native = new.view(domain="native", at="total")
    assert (native.domain, native.at) == (heapline.NATIVE, "total")
    for wrong in ({"domain": "bogus"}, {"at": "noon"}, {"frames": "some"}):
        with pytest.raises(ValueError, match="bogus|noon|some"):
            new.view(**wrong)


def test_native_memory_is_blamed_on_pythons_lines(new):
    largest = new.view(domain=heapline.NATIVE, at="peak").statistics("lineno")[0]
    assert largest.traceback[0].filename.endswith("workload.py")
    assert largest.size >= 5_000_000


def test_frames_know_functions(new):
    row = new.filter_traces([heapline.Filter(True, "*workload.py", 8)]).statistics("traceback")[0]
    assert [frame.function for frame in row.traceback][-2:] == ["deep", "leaf"]
    assert row.traceback.format()[-2].endswith(", in leaf")
    assert row.traceback.format()[-1] == "    return bytearray(size)"
    assert row.traceback.format(limit=1) == row.traceback.format()[-2:]
    assert row.traceback.format(most_recent_first=True)[:2] == row.traceback.format(limit=1)
    assert row.traceback.total_nframe == len(row.traceback) or len(row.traceback) == 8
    assert isinstance(row.traceback, tracemalloc.Traceback)


def test_rows_are_a_sequence(new):
    rows = new.statistics("lineno")
    assert rows[0] == rows[:1][0] and rows[-1] == rows[len(rows) - 1]
    assert rows == list(rows) and rows[2:5] == list(rows)[2:5]
    assert "Rows len=" in repr(rows)
    with pytest.raises(IndexError):
        rows[len(rows)]
    with pytest.raises(IndexError):
        new.traces[len(new.traces)]


def test_dump_and_load(new, tmp_path):
    new.dump(tmp_path / "again.snap.zst")
    again = heapline.load(tmp_path / "again.snap.zst")
    assert again.meta == new.meta
    assert again.statistics("traceback") == new.statistics("traceback")


def test_files_that_are_no_snapshots(tmp_path):
    with pytest.raises(FileNotFoundError):
        heapline.load(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="snapshot"):
        heapline.load(tmp_path / "text")
    with pytest.raises(OSError):
        heapline.load(tmp_path)


def test_snapshots_of_native_programs_and_of_every_version():
    fixtures = Path(__file__).parents[2] / "shared-format" / "tests" / "fixtures"
    files = sorted(fixtures.glob("*.snap.zst"))
    assert files
    for file in files:
        snapshot = heapline.load(file)
        assert len(snapshot.traces) == snapshot.count
        assert sum(row.size for row in snapshot.statistics("lineno")) == snapshot.size


def test_pandas(new):
    pytest.importorskip("pandas")
    frame = new.to_pandas()
    assert int(frame["size"].sum()) == new.size and int(frame["count"].sum()) == new.count
    by_line = frame.groupby(["filename", "lineno"], observed=True)["size"].sum().sort_values(ascending=False)
    first = new.statistics("lineno")[0]
    assert (by_line.index[0], by_line.iloc[0]) == ((first.traceback[0].filename, first.traceback[0].lineno), first.size)


def test_arrow(new):
    compute = pytest.importorskip("pyarrow.compute")
    table = new.to_arrow()
    assert compute.sum(table["size"]).as_py() == new.size
    assert set(table["domain"].to_pylist()) == {"python"}
    assert new.view(at="peak").to_arrow()["thread"].null_count > 0


def test_samples_are_never_shown_as_if_they_were_all(sampled: tuple[Path, Path], old: heapline.Snapshot) -> None:
    def of_script(path: Path) -> heapline.Snapshot:
        total = heapline.load(path).view(at="total")
        return total.filter_traces([heapline.Filter(True, "*sampled.py")])

    view, exact = map(of_script, sampled)
    assert (view.mode, view.meta["sample_interval"], exact.mode) == ("sampled", 4096, "exact")
    (row,) = view.statistics("filename")
    assert isinstance(row, heapline.SampledStatistic)
    # Six standard deviations: the samples are others each time.
    (low, high), (few, many) = row.size_interval, row.count_interval
    assert low < row.size < high and abs(row.size - exact.size) < 1.5 * (high - low)
    assert few < row.count < many and abs(row.count - exact.count) < 1.5 * (many - few)
    assert str(row).startswith(f"{row.traceback}: size=~") and " to " in str(row) and f"count=~{row.count} (" in str(row)
    assert f"size=~{row.size} count=~{row.count}" in repr(row)
    assert (view.size, view.size_interval) == (row.size, row.size_interval)
    assert (view.count, view.count_interval) == (row.count, row.count_interval)
    difference = view.compare_to(old, "filename")[0]
    assert isinstance(difference, heapline.SampledStatisticDiff)
    assert 0 < difference.size_diff_doubt < difference.size_diff and "±" in str(difference)
    live = heapline.load(sampled[0])
    assert sum(trace.size for trace in live.traces) == live.size


def test_exact_figures_have_no_interval(new: heapline.Snapshot) -> None:
    assert new.size_interval is None and new.count_interval is None
    assert type(new.statistics("lineno")[0]) is heapline.Statistic
