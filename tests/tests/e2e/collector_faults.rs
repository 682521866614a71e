//! A panic in a cold path of the collector ends tracing, not the target. `HEAPLINE_FAULT` selects
//! the panicking path.

use crate::support::{Outcome, Trace, victim};
use std::path::PathBuf;

/// Loads libraries, starts threads and fills segments, so that every path runs.
fn run(site: Option<&str>) -> Outcome {
    let flags = ["-O1", "-shared", "-fPIC"];
    let plugin: PathBuf = victim::build("plugin.c", &flags);
    let trace = match site {
        // Signal handlers have stacks that cannot be kept.
        Some("walk") => Trace::of(victim::build("unwind.c", &["-O1"])).arg(&plugin),
        _ => Trace::of(victim::build("dlopen.c", &["-O1"])).arg(&plugin).arg(&plugin),
    };
    match site {
        Some(site) => trace.env("HEAPLINE_FAULT", site),
        None => trace,
    }
    .run()
    .expect_code(0)
}

fn assert_survives(site: &str) {
    let faulty = run(Some(site));
    if site != "walk" {
        assert_eq!(faulty.stdout(), "same_address 1\n", "{site}: the target's output");
    }
    let report = faulty.report(&[]);
    assert_eq!(report.snapshot.end, "stalled", "{site}");
    let notes = faulty.snapshot().meta.notes.join("\n");
    assert!(notes.contains("the collector failed"), "{site}: the snapshot says why: {notes:?}");
    assert!(faulty.stderr().contains("the collector failed"), "{site}: and so does the aggregator");
    assert_eq!(report.snapshot.contradictions, 0, "{site}: what was recorded before is right");
}

#[test]
fn init() {
    assert_survives("init");
}

#[test]
fn thread() {
    assert_survives("thread");
}

#[test]
fn segment() {
    assert_survives("segment");
}

#[test]
fn rule() {
    assert_survives("rule");
}

#[test]
fn stack() {
    assert_survives("stack");
}

#[test]
fn module() {
    assert_survives("module");
}

#[test]
fn walk() {
    assert_survives("walk");
}

#[test]
fn an_unknown_site_changes_nothing() {
    assert_eq!(run(Some("nonsense")).report(&[]).native(), run(None).report(&[]).native());
}

#[test]
fn a_disabled_collector_records_nothing_and_says_so() {
    let outcome = Trace::of(victim::build("counts.c", &["-O0"])).env("HEAPLINE_DISABLE", "1").run().expect_code(0);
    assert_eq!(outcome.report(&[]).native().allocs, 0);
    assert!(outcome.stderr().contains("HEAPLINE_DISABLE"), "{}", outcome.stderr());
}
