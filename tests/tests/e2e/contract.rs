//! The JSON contract with other programs (every field, every grouping, diffs), and the shape of the
//! other formats.

use crate::support::trace::{ctl_ok, report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{Outcome, Trace, programs, stdout_of};
use std::process::Command;

fn outcome() -> Outcome {
    Trace::of(victim::build("lines.c", &["-O0"])).args(["with", "arguments"]).run().expect_code(0)
}

#[test]
fn the_head_says_what_was_traced_and_how() {
    let outcome = outcome();
    let report = outcome.report(&[]);
    let head = &report.snapshot;
    assert!(head.pid > 1);
    assert!(head.command.ends_with("/lines with arguments"), "{}", head.command);
    assert_eq!((head.mode.as_str(), head.sample_interval, head.nframe), ("exact", 0, 64));
    assert_eq!(head.end, "exited");
    let year = head.taken_at.split('-').next().and_then(|y| y.parse::<u32>().ok());
    assert!(year.is_some_and(|y| y >= 2025) && head.taken_at.contains('T'), "RFC 3339: {}", head.taken_at);
    assert!(report.own.target_bytes > 0 && report.own.aggregator_bytes > 0);
    assert_eq!((report.view.as_str(), report.by.as_str(), report.at.as_str()), ("native", "lineno", "live"));
    assert!(!report.cumulative);
}

#[test]
fn each_grouping_has_its_keys() {
    let outcome = outcome();
    let total = 1001 + 1002 + 1003 + 700 + 1005 + 1024 + 40;
    for (by, groups) in
        [("filename", 1), ("lineno", 6), ("function", 3), ("module", 1), ("traceback", 7), ("size", 7), ("thread", 1)]
    {
        let report = outcome.report(&["--by", by]);
        assert_eq!((report.total.groups, report.total.size, report.total.count), (groups, total, 10), "{by}");
        assert_eq!(report.stats.len() as u64, groups, "{by}");
        assert!(report.stats.is_sorted_by_key(|s| std::cmp::Reverse(s.size)), "{by}: the biggest first");
        let keyed = matches!(by, "function" | "module" | "size" | "thread");
        assert!(report.stats.iter().all(|s| s.key.is_null() != keyed), "{by}: {:?}", report.stats);
        assert!(report.stats.iter().all(|s| s.total_nframe.is_some() == (by == "traceback")), "{by}");
        assert!(report.stats.iter().all(|s| s.size_diff.is_none() && s.count_diff.is_none()), "{by}");
    }
    let by_file = outcome.report(&["--by", "filename"]);
    assert_eq!(by_file.stats[0].most_recent().lineno, 0, "grouped by filename there is no line");
    assert_eq!(by_file.stats[0].most_recent().filename, victim::source("lines.c").to_str().expect("UTF-8"));
}

#[test]
fn tracebacks_run_from_the_oldest_to_the_most_recent() {
    let report = outcome().report(&["--by", "traceback"]);
    let stat = report.stats.iter().find(|s| s.size == 1001).expect("the block of 1001 bytes");
    let functions: Vec<_> = stat.traceback.iter().filter_map(|f| f.function.as_deref()).collect();
    assert_eq!(functions.first(), Some(&"_start"));
    assert_eq!(functions[functions.len() - 2..], ["main", "plain"]);
    for frame in &stat.traceback {
        assert!(frame.address.as_deref().is_some_and(|a| a.starts_with("0x")), "{frame:?}");
        assert!(frame.module.is_some(), "{frame:?}");
    }
}

#[test]
fn limit_cuts_rows_and_not_the_total() {
    let outcome = outcome();
    let mut report = Command::new(&programs().report);
    report.arg(outcome.snapshot_path()).args(["--format", "json", "--limit", "2"]);
    let json: serde_json::Value = serde_json::from_str(&stdout_of(&mut report)).expect("JSON");
    assert_eq!(json["stats"].as_array().map(Vec::len), Some(2));
    assert_eq!(json["total"]["groups"], 6);
}

#[test]
fn a_diff_is_new_minus_old() {
    let flags = ["-O0"];
    let old = Trace::of(victim::build("story.c", &flags)).input(b".").run().expect_code(97);
    let new = Trace::of(victim::build("story.c", &flags)).input(b"...").run().expect_code(97);
    let diff = report_on(&new.snapshot_path(), &["--diff", old.snapshot_path().to_str().expect("UTF-8")]);
    let line = |marker: &str| line_of("story.c", &format!("// LINE {marker}"));
    let row = |marker: &str| {
        let found = diff.stats.iter().find(|s| s.most_recent().lineno == line(marker)).expect("a row of the diff");
        (found.size, found.size_diff, found.count, found.count_diff)
    };
    assert_eq!(row("big"), (0, Some(-50_000_000), 0, Some(-1)));
    assert_eq!(row("small"), (30_000, Some(30_000), 1, Some(1)));
    assert_eq!(row("kept"), (1000, Some(0), 1, Some(0)));
    let lines: Vec<_> = diff.stats.iter().map(|s| s.most_recent().lineno).collect();
    assert_eq!(lines, [line("big"), line("small"), line("kept")], "the greatest change first");
    assert_eq!((diff.total.size, diff.total.count), (31_000, 2), "the total is the new snapshot's");
}

#[test]
fn filters_include_and_exclude_by_file_and_line() {
    let outcome = outcome();
    let line = line_of("lines.c", "// LINE plain");
    let count = |options: &[&str]| outcome.report(options).total.count;
    assert_eq!(count(&["--filter", &format!("*/lines.c:{line}")]), 1);
    assert_eq!(count(&["--exclude", &format!("*/lines.c:{line}")]), 9);
    let called = line_of("lines.c", "// LINE calls_plain");
    assert_eq!(count(&["--filter", &format!("*/lines.c:{called}")]), 0, "only the most recent frame counts");
    assert_eq!(count(&["--all-frames", "--filter", &format!("*/lines.c:{called}")]), 1, "unless all do");
}

#[test]
fn the_text_is_tracemallocs() {
    let outcome = outcome();
    let text =
        stdout_of(Command::new(&programs().report).arg(outcome.snapshot_path()).args(["--limit", "3", "--source"]));
    let file = victim::source("lines.c");
    let inlined = line_of("lines.c", "// LINE inlined");
    let first = format!("#1: {}:{inlined}:", file.display());
    assert!(text.contains(&first), "{first} is not in\n{text}");
    assert!(text.contains("return malloc(n); // LINE inlined"), "the source line\n{text}");
    assert!(text.contains("3 other:"), "{text}");
    assert!(text.contains("Total allocated size:"), "{text}");
}

#[test]
fn csv_and_folded_hold_the_same_numbers() {
    let outcome = outcome();
    let run = |args: &[&str]| stdout_of(Command::new(&programs().report).arg(outcome.snapshot_path()).args(args));
    let csv = run(&["--format", "csv", "--by", "size", "--limit", "0"]);
    assert_eq!(csv.lines().count(), 1 + 7, "a head and a row for each size\n{csv}");
    let folded = run(&["--format", "folded", "--by", "traceback", "--limit", "0"]);
    let sizes = folded.lines().map(|l| l.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a size"));
    assert_eq!(sizes.sum::<u64>(), 1001 + 1002 + 1003 + 700 + 1005 + 1024 + 40, "{folded}");
    assert!(folded.lines().any(|l| l.contains("main;plain ")), "{folded}");
}

#[test]
fn live_stats_are_a_reports_head() {
    let mut running = Trace::of(victim::build("story.c", &["-O0"])).spawn();
    let pid = running.target_pid();
    let stats = crate::support::wait_for("the first block", || {
        let stats = stats(pid);
        (stats.native().blocks == 1).then_some(stats)
    });
    assert_eq!(stats.snapshot.pid, u32::try_from(pid).expect("a pid"));
    assert_eq!((stats.snapshot.mode.as_str(), stats.snapshot.nframe), ("exact", 64));
    assert_eq!(stats.snapshot.lost.values().sum::<u64>() + stats.snapshot.untracked_frees, 0);
    assert_eq!(stats.snapshot.end, None, "it has not ended");
    assert!(stats.own.target_bytes > 0);
    assert!(ctl_ok(pid, &["stats"]).contains("1000"), "as text too");
    drop(running.child.stdin.take());
    running.finish();
}

/// The program may end before the aggregator has asked the kernel for the program's name.
#[test]
fn the_shortest_program_has_its_command() {
    for _ in 0..30 {
        let outcome = Trace::of("true").arg("--so it goes").run().expect_code(0);
        assert_eq!(outcome.snapshot().meta.command, "true --so it goes");
    }
}
