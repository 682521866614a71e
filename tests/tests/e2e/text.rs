//! The text of a report on real programs: where tracebacks begin, what is told of attaches, forks
//! and empty recordings.

use crate::support::stepped::{Stepped, detach};
use crate::support::{Outcome, Trace, programs, stdout_of, victim};
use std::path::Path;
use std::process::Command;

fn text(snapshot: &Path, options: &[&str]) -> String {
    stdout_of(Command::new(&programs().report).arg(snapshot).args(options))
}

#[test]
fn a_traceback_ends_where_the_program_begins() {
    let of = |outcome: &Outcome, options: &[&str]| {
        text(&outcome.snapshot_path(), &[&["--by", "traceback", "--limit", "0", "--at", "total"], options].concat())
    };
    let outcome = Trace::of(victim::build("lines.c", &["-O0"])).run().expect_code(0);
    let shown = of(&outcome, &["--filter", "*/lines.c"]);
    assert!(
        shown.contains(", in main [") && !shown.contains(" in _start") && !shown.contains("__libc_start"),
        "{shown}"
    );
    assert!(of(&outcome, &["--raw-frames"]).contains(", in _start ["));

    let outcome = Trace::of(victim::build_rust("blame.rs", &[])).run().expect_code(0);
    let shown = of(&outcome, &["--filter", "*/blame.rs"]);
    let main: Vec<&str> = shown.lines().filter(|line| line.contains(", in blame::main [")).collect();
    assert!(main.len() >= 4 && !shown.contains("lang_start") && !shown.contains("::call_once"), "{shown}");
    assert!(of(&outcome, &["--raw-frames"]).contains("lang_start"));
}

#[test]
fn allocations_are_counted_from_the_attach_on() {
    let mut victim = Stepped::start(Command::new(victim::build("attached.c", &["-O1"])).arg("no plugin"));
    let path = victim.snapshot_path("a.snap.zst");
    victim.steps("mMf");
    let aggregator = victim.attach(&path, &[]);
    victim.steps("mM");
    detach(aggregator);
    let shown = text(&path, &["--by", "lineno"]);
    let first = format!("Process {}: exact since the attach; peak: native 1700 B\n", victim.pid());
    assert!(shown.starts_with(&first), "{shown}");
    assert!(shown.contains("; 2 allocated (1700 B), 0 freed since the attach\n"), "{shown}");
    assert_eq!(shown.matches("attached while it ran").count(), 1, "{shown}");
    victim.step(b'f');
    assert_eq!(victim.finish(), 0);
}

#[test]
fn the_reason_for_no_records_is_told_once() {
    let outcome = Trace::of("true").run().expect_code(0);
    for options in [&[][..], &["--by", "lineno"]] {
        let shown = text(&outcome.snapshot_path(), options);
        // A screen breaks the sentence.
        let sentence = shown.replace('\n', " ");
        assert_eq!(sentence.matches("the program made no allocation while it was traced").count(), 1, "{shown}");
        assert!(shown.contains("\nNO RECORDS: ") && !shown.contains("Usual reasons"), "{shown}");
    }
}

/// Children of a shell that run the same program are a row, and forked children say what they
/// inherited.
#[test]
fn processes_of_a_program_are_a_row() {
    let outcome = Trace::of("sh").args(["-c", "ls; ls; ls; :"]).run().expect_code(0);
    let path = outcome.snapshot_path();
    let shown = stdout_of(Command::new(&programs().report).arg("--tree").arg(&path));
    assert!(shown.starts_with("Tree of 4 processes: exact; peaks together: native "), "{shown}");
    assert!(shown.contains("\n    3 x ls: current ") && shown.contains(", started, exited"), "{shown}");
    let each = stdout_of(Command::new(&programs().report).arg("-v").arg("--tree").arg(&path));
    assert_eq!(each.lines().filter(|line| line.contains(" ls: current ")).count(), 3, "{each}");

    let outcome = Trace::of("sh").args(["-c", "x=$(echo a); (echo b; echo c) | cat"]).run().expect_code(0);
    let shown = stdout_of(Command::new(&programs().report).arg("--tree").arg(outcome.snapshot_path()));
    for row in shown.lines().filter(|line| line.contains(", forked")) {
        assert!(row.contains(" inherited, exited"), "{shown}");
    }
}
