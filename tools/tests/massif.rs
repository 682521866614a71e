//! Tests of the export for massif's viewers, read by `ms_print`.

mod support;

use heapline_shared_format::snapshot::history::{DomainStep, Step};
use heapline_shared_format::snapshot::{Domain, History};
use std::process::Command;
use support::scene::{report, stderr, stdout};
use support::snapshot::Builder;
use tempfile::tempdir;

/// A program with 20000 bytes at its peak in the second step, and 10000 at its end.
fn snapshot(with_history: bool) -> Builder {
    let mut builder = Builder::new(None);
    builder.snapshot.meta.command = "app #1".to_string();
    let main = ("/src/main.rs", "main", 3);
    let kept = builder.calls(&[main, ("/src/keep.rs", "keep::{closure#0}", 7)]);
    let small = builder.calls(&[main, ("/src/log.rs", "log", 9)]);
    builder.blocks(Domain::Native, kept, 0, 3000, 3);
    builder.blocks(Domain::Native, small, 0, 1000, 1);
    let row = |current, greatest| {
        let (domain, blocks, allocs, frees, allocated_bytes) = (Domain::Native, 1, 1, 1, 1);
        DomainStep { domain, current, blocks, greatest, allocs, frees, allocated_bytes }
    };
    let step = |end, current, greatest| Step { end, domains: vec![row(current, greatest)], ..Step::default() };
    let steps = vec![step(0, 0, 0), step(500, 8000, 9000), step(1000, 12_000, 30_000), step(1500, 10_000, 12_000)];
    builder.snapshot.history = with_history.then(|| History { steps, apart: 4096, ..History::default() });
    builder
}

#[test]
fn ms_print_shows_the_steps_the_peak_and_the_end() {
    let dir = tempdir().unwrap();
    let path = snapshot(true).save(dir.path(), "a.snap.zst");
    let file = dir.path().join("massif.out");
    let output = report(&[path.to_str().unwrap(), "--format", "massif", "-o", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = std::fs::read_to_string(&file).unwrap();
    let tree = "
heap_tree=peak
n2: 30000 (native memory)
 n1: 27000 keep::{closure:0} (/src/keep.rs:7)
  n0: 27000 main (/src/main.rs:3)
 n1: 3000 log (/src/log.rs:9)
  n0: 3000 main (/src/main.rs:3)
#-----------
snapshot=3
";
    assert!(text.starts_with("desc: Heapline, native memory of process 4711\ncmd: app :1\ntime_unit: ms\n"), "{text}");
    assert!(text.contains(tree), "{text}");
    match Command::new("ms_print").arg(&file).output() {
        Ok(printed) => {
            let printed = String::from_utf8(printed.stdout).unwrap();
            assert!(printed.contains("\nNumber of snapshots: 5\n Detailed snapshots: [2 (peak), 4]\n"), "{printed}");
            let row = |n: u64, time: &str, bytes: &str| format!("{n:>3} {time:>14} {bytes:>16} {bytes:>16}");
            for (n, time, bytes) in
                [(1, "500", "8,000"), (2, "1,000", "30,000"), (3, "1,000", "12,000"), (4, "1,500", "10,000")]
            {
                assert!(printed.contains(&row(n, time, bytes)), "{n}: {printed}");
            }
            assert!(printed.contains("\n100.00% (30,000B) (native memory)\n->90.00% (27,000B) keep::"), "{printed}");
            assert!(printed.contains("\n100.00% (10,000B) (native memory)\n->90.00% (9,000B) keep::"), "{printed}");
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "ms_print: {error}");
            eprintln!("skipped: ms_print of valgrind is not here");
        }
    }
    let limited = stdout(&report(&[path.to_str().unwrap(), "--format", "massif", "--limit", "1"]));
    assert!(limited.contains("\n n0: 3000 in 1 place, not shown\n"), "{limited}");
}

#[test]
fn without_a_history_there_is_no_time() {
    let dir = tempdir().unwrap();
    let path = snapshot(false).save(dir.path(), "a.snap.zst");
    let output = report(&[path.to_str().unwrap(), "--format", "massif"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("process 4711 has no history"), "{}", stderr(&output));
    // The history does not know the step with the peak.
    let mut builder = snapshot(true);
    builder.snapshot.domains[0].peak = 31_000;
    let path = builder.save(dir.path(), "b.snap.zst");
    let text = stdout(&report(&[path.to_str().unwrap(), "--format", "massif"]));
    assert!(!text.contains("heap_tree=peak") && text.matches("heap_tree=empty").count() == 3, "{text}");
    assert_eq!(text.matches("heap_tree=detailed\nn2: 10000 (native memory)\n").count(), 1, "{text}");
}
