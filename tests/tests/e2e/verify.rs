//! Compares incremental unwinding with gimli's full walk, event by event (`HEAPLINE_VERIFY=1` in
//! the target).

use crate::support::python::pythons;
use crate::support::victim::{self, source};
use crate::support::{Trace, has, rounds};
use std::path::Path;

/// Number of compared stacks and of different stacks, from the snapshot's notes.
pub fn compared(trace: Trace) -> (u64, u64) {
    let outcome = trace.env("HEAPLINE_VERIFY", "1").run().expect_code(0);
    outcome.report(&[]).assert_exact();
    let notes = outcome.snapshot().meta.notes;
    let note = notes.iter().find(|note| note.contains("HEAPLINE_VERIFY")).unwrap_or_else(|| panic!("{notes:?}"));
    let numbers: Vec<u64> = note.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    (numbers[0], numbers[1])
}

fn trees(flags: &[&str], threads: &str) {
    trees_in(&|trace| trace, flags, threads);
}

fn trees_in(setting: &dyn Fn(Trace) -> Trace, flags: &[&str], threads: &str) {
    let events = rounds("HEAPLINE_EVENTS", 20_000).to_string();
    let plugin = victim::build("plugin.c", &["-O2", "-shared", "-fPIC"]);
    let trace = Trace::of(victim::build("trees.cpp", flags)).args([&events, threads]).arg(&plugin);
    let (all, different) = compared(setting(trace));
    assert!(all > 9_000, "{all} stacks were compared");
    assert_eq!(different, 0, "of {all}, {flags:?}, {threads} threads");
}

#[test]
fn random_call_trees_are_walked_as_by_gimli_at_o0() {
    trees(&["-O0"], "2");
}

#[test]
fn random_call_trees_are_walked_as_by_gimli_without_frame_pointers() {
    trees(&["-O2", "-fomit-frame-pointer"], "3");
}

#[test]
fn random_call_trees_are_walked_as_by_gimli_with_frame_pointers() {
    trees(&["-O2", "-fno-omit-frame-pointer"], "1");
}

/// Threads open and close a library while others walk their stacks.
#[test]
fn random_call_trees_are_walked_as_by_gimli_with_the_table_of_objects() {
    trees_in(&|trace| trace.env("HEAPLINE_OBJECTS", "table"), &["-O2"], "3");
}

#[test]
fn an_rbp_saved_in_another_place_is_found_as_by_gimli() {
    for flags in [["-O1", "-fno-omit-frame-pointer"], ["-O0", "-fomit-frame-pointer"]] {
        let (all, different) = compared(Trace::of(victim::build("moving.c", &flags)).arg("1000"));
        assert!(all >= 2000, "{all} stacks were compared");
        assert_eq!(different, 0, "of {all}, {flags:?}");
    }
}

#[test]
fn ten_thousand_frames_are_walked_as_by_gimli() {
    let (all, different) = compared(Trace::of(victim::build("deep.c", &["-O1"])).arg("10000"));
    assert!(all > 0);
    assert_eq!(different, 0, "of {all}");
}

#[test]
fn a_real_program_is_walked_as_by_gimli() {
    if !has("sqlite3") {
        return;
    }
    let sql = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/workloads/sq.sql");
    let text = std::fs::read(sql).expect("the workload");
    // A tenth of the benchmark's rows.
    let few = String::from_utf8(text).expect("text").replace("00000", "0000");
    let (all, different) = compared(Trace::of("sqlite3").arg(":memory:").input(few));
    assert!(all > 10_000, "{all} stacks were compared");
    assert_eq!(different, 0, "of {all}");
}

/// The collector's table of stacks is bounded like the rings. Stacks beyond the bound cost records,
/// not exactness.
#[test]
fn more_stacks_than_a_thread_remembers_are_all_told_apart() {
    let distinct = 600_000;
    let program = victim::build("stacks.c", &["-O1"]);
    let trace = || Trace::of(&program).arg(distinct.to_string());
    let notes = trace().run().expect_code(0).snapshot().meta.notes;
    assert!(!notes.iter().any(|note| note.contains("table of stacks")), "{notes:?}");
    let outcome = trace().option("--max-target-memory").option("24M").run().expect_code(0);
    let report = outcome.report(&["--at", "total", "--filter", "*/stacks.c"]);
    report.assert_exact();
    assert_eq!(report.total.count, distinct);
    let snapshot = outcome.snapshot();
    // Each stack has a row of totals. The other rows are libc's.
    let of_one_block = snapshot.totals.iter().filter(|row| (row.total_count, row.total_size) == (1, 24)).count() as u64;
    assert_eq!(of_one_block, distinct, "stacks that allocated once");
    let notes = snapshot.meta.notes;
    assert!(notes.iter().any(|note| note.contains("table of stacks was filled anew 1 time")), "{notes:?}");
}

/// Frames of Python are compared with a fresh reading too.
#[test]
fn frames_of_python_are_what_a_fresh_reading_finds() {
    for python in pythons() {
        let (all, different) = compared(Trace::of(&python.program).arg(source("python/frames.py")));
        assert!(all > 100_000, "3.{}: {all} stacks were compared", python.minor);
        assert_eq!(different, 0, "3.{}: of {all}", python.minor);
    }
}

/// Compiled functions keep results in registers, where the collector does not see them come.
#[test]
fn frames_of_compiled_python_are_what_a_fresh_reading_finds() {
    for python in pythons() {
        let trace = Trace::of(&python.program).arg(source("python/hot.py")).env("PYTHON_JIT", "1");
        let (all, different) = compared(trace);
        assert!(all > 300_000, "3.{}: {all} stacks were compared", python.minor);
        assert_eq!(different, 0, "3.{}: of {all}", python.minor);
    }
}
