//! Groups of a report: functions that share a line stay apart, threads have names, and modules
//! without lines have functions.

use crate::support::python::pythons;
use crate::support::trace::ctl_ok;
use crate::support::victim::{self, line_of, source};
use crate::support::{Outcome, Trace, programs, stdout_of, wait_for};
use std::collections::BTreeMap;
use std::process::Command;

fn text(outcome: &Outcome, options: &[&str]) -> String {
    stdout_of(Command::new(&programs().report).arg(outcome.snapshot_path()).args(options))
}

/// Bytes of each key.
fn keys(outcome: &Outcome, options: &[&str]) -> BTreeMap<String, u64> {
    let report = outcome.report(options);
    report.stats.iter().map(|row| (row.key.as_str().expect("a name").to_string(), row.size)).collect()
}

#[test]
fn instances_of_a_template_are_functions_of_their_own() {
    for level in ["-O0", "-O2"] {
        let outcome = Trace::of(victim::build("oneline.cpp", &["-std=c++17", "-fno-optimize-sibling-calls", level]))
            .run()
            .expect_code(0);
        let functions = keys(&outcome, &["--by", "function"]);
        let wanted = [("keep<10000>", 10_000), ("keep<20000>", 20_000), ("keep<40000>", 40_000)];
        assert_eq!(functions, wanted.map(|(name, size)| (name.to_string(), size)).into(), "{level}");
        let rows = text(&outcome, &["--by", "function"]);
        let folded = text(&outcome, &["--format", "folded"]);
        for (name, size) in wanted {
            assert!(rows.contains(name), "{rows}");
            assert!(folded.lines().any(|line| line.ends_with(&format!("{name} {size}"))), "{folded}");
        }
        // A line is one row, as in tracemalloc. A native traceback names functions.
        let line = line_of("oneline.cpp", "// LINE keep");
        assert_eq!(outcome.report(&["--by", "lineno"]).at_line("oneline.cpp", line), (70_000, 3), "{level}");
        let tracebacks = outcome.report(&["--by", "traceback"]);
        let rows: Vec<_> = tracebacks.stats.iter().map(|row| (row.most_recent().function.clone(), row.size)).collect();
        let row = |(name, size): (&str, u64)| (Some(name.to_string()), size);
        assert_eq!(rows, [wanted[2], wanted[1], wanted[0]].map(row), "{level}");
        let tree: serde_json::Value =
            serde_json::from_str(&text(&outcome, &["--by", "tree", "--format", "json"])).expect("JSON");
        let leaves = tree["stats"].as_array().expect("rows").iter().filter(|row| row["own_size"] != 0);
        assert_eq!(leaves.map(|row| row["size"].as_u64()).collect::<Vec<_>>(), [40_000, 20_000, 10_000].map(Some));
    }
}

#[test]
fn functions_of_one_line_of_python_are_not_the_modules() {
    for python in pythons() {
        let outcome = Trace::of(&python.program).arg(source("python/oneline.py")).run().expect_code(0);
        let functions = keys(&outcome, &["--by", "function", "--filter", "*/oneline.py"]);
        let of = |name: &str| functions.get(name).copied().unwrap_or(0);
        for (name, size) in [("worker", 800_000), ("second", 700_000), ("outer", 100_000), ("inner", 90_000)] {
            assert!((size..size + 1000).contains(&of(name)), "3.{}: {functions:?}", python.minor);
        }
        assert!((500_000..502_000).contains(&of("<lambda>")), "3.{}: {functions:?}", python.minor);
    }
}

#[test]
fn threads_that_ended_are_a_row_by_name() {
    let mut running = Trace::of(victim::build("workers.c", &["-O1"])).spawn();
    let pid = running.target_pid();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("now.snap.zst");
    // Six threads have ended, with 1000 to 1005 bytes.
    let rows = wait_for("the end of six threads", || {
        ctl_ok(pid, &["snapshot", "-o", path.to_str().expect("UTF-8")]);
        let report = crate::support::trace::report_on(&path, &["--by", "thread", "--filter", "*/workers.c"]);
        report.stats.first().is_some_and(|row| row.size == 6015).then_some(report.stats)
    });
    let rows: Vec<(String, u64, u64)> =
        rows.iter().map(|row| (row.key.as_str().expect("a name").to_string(), row.size, row.count)).collect();
    assert_eq!(rows[0], ("worker-* (ended)".to_string(), 6015, 6));
    let live: Vec<(bool, u64)> = rows[1..].iter().map(|row| (row.0.starts_with("worker-"), row.1)).collect();
    assert_eq!(live, [(true, 1007), (true, 1006)], "{rows:?}");
    drop(running.child.stdin.take());
    let outcome = running.finish();
    for at in ["peak", "total"] {
        let rows = outcome.report(&["--by", "thread", "--at", at]).stats;
        let workers = rows.iter().find(|row| row.key == "worker-* (ended)").expect("the workers");
        // The C library allocates for threads too.
        assert!((8028..9028).contains(&workers.size) && workers.count >= 8, "{at}: {rows:?}");
    }
    let filtered = Command::new(&programs().report)
        .arg(outcome.snapshot_path())
        .args(["--by", "thread", "--at", "peak", "--filter", "*"])
        .output()
        .expect("report runs");
    let error = String::from_utf8(filtered.stderr).expect("UTF-8");
    assert_eq!((filtered.status.code(), error.lines().count()), (Some(2), 1), "{error}");
}

#[test]
fn a_module_without_lines_is_grouped_by_function() {
    let program = victim::build("lines.c", &["-O0", "-g0"]);
    let outcome = Trace::of(&program).args(["with", "arguments"]).run().expect_code(0);
    let path = program.to_str().expect("UTF-8");
    let report = outcome.report(&["--by", "lineno"]);
    let functions: Vec<_> = report.stats.iter().map(|row| row.most_recent().function.clone()).collect();
    assert_eq!(functions, ["main", "plain"].map(|name| Some(name.to_string())));
    assert!(report.stats.iter().all(|row| row.most_recent().filename == path && row.most_recent().lineno == 0));
    let plain = format!("{path}: 1001 B in 1 block, 17.3 %, plain");
    let shown = text(&outcome, &["--by", "lineno"]);
    assert!(shown.contains(&plain), "{shown}");
    let by_file = outcome.report(&["--by", "filename"]);
    assert_eq!((by_file.total.groups, by_file.total.size), (1, report.total.size), "a file is the module");
}
