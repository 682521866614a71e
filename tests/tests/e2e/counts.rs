//! Counts of every function of the malloc family, compared with the victim's own account and with
//! valgrind.

use crate::support::trace::live_sizes;
use crate::support::{Trace, has, victim};
use std::path::Path;
use std::process::Command;

/// Allocations, frees and allocated bytes; blocks and bytes in use at exit.
#[derive(Debug, PartialEq)]
struct Usage {
    allocs: u64,
    frees: u64,
    bytes: u64,
    live_blocks: u64,
    live_bytes: u64,
}

/// Runs the victim under tracing. Returns the recorded usage, and a look-up of the numbers printed
/// by the victim.
fn traced(trace: Trace) -> (Usage, impl Fn(&str) -> u64) {
    let outcome = trace.run().expect_code(0);
    let report = outcome.report(&[]);
    report.assert_exact();
    let native = report.native();
    assert_eq!(report.snapshot.end, "exited");
    assert_eq!(report.snapshot.untracked_frees, 0, "all is traced from the first instruction");
    assert_eq!((report.total.size, report.total.count), (native.current, native.blocks));
    let usage = Usage {
        allocs: native.allocs,
        frees: native.frees,
        bytes: native.allocated_bytes,
        live_blocks: native.blocks,
        live_bytes: native.current,
    };
    let printed = outcome.printed();
    (usage, move |name| *printed.get(name).unwrap_or_else(|| panic!("the victim does not say {name}")))
}

/// Returns valgrind's "total heap usage" and "in use at exit". Frees made by the C library itself
/// at exit are no usage of the program, so they are switched off.
fn under_valgrind(command: &mut Command) -> Usage {
    let output = command.output().expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr).replace(',', "");
    let numbers = |marker: &str| -> Vec<u64> {
        let line = text.lines().find_map(|l| l.split_once(marker)).unwrap_or_else(|| panic!("no {marker}\n{text}"));
        line.1.split_whitespace().filter_map(|w| w.parse().ok()).collect()
    };
    let (in_use, usage) = (numbers("in use at exit:"), numbers("total heap usage:"));
    Usage { allocs: usage[0], frees: usage[1], bytes: usage[2], live_bytes: in_use[0], live_blocks: in_use[1] }
}

fn valgrind() -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--run-libc-freeres=no", "--run-cxx-freeres=no"]);
    command
}

#[test]
fn every_function_and_case_counts_as_the_victim_says() {
    for (flags, mode) in [("-O0", "strict"), ("-O2", "strict"), ("-O2", "others")] {
        assert_counts_of(&victim::build("counts.c", &[flags]), mode);
    }
}

/// Checks the counts of a build of `counts.c`.
pub fn assert_counts_of(program: &Path, mode: &str) {
    let (usage, said) = traced(Trace::of(program).arg(mode));
    let wanted = Usage {
        allocs: said("allocs"),
        frees: said("frees"),
        bytes: said("bytes"),
        live_blocks: said("live_blocks"),
        live_bytes: said("live_bytes"),
    };
    assert_eq!(usage, wanted, "{} {mode}", program.display());
}

/// The sizes are worked out from `counts.c` by hand, because the victim's own account could have
/// the same mistake as Heapline.
#[test]
fn every_live_block_has_the_size_that_was_asked_for() {
    let outcome = Trace::of(victim::build("counts.c", &["-O0"])).run().expect_code(0);
    let live = live_sizes(&outcome.snapshot());
    assert_eq!(live.into_iter().collect::<Vec<_>>(), [(0, 2), (321, 1), (640, 1)]);
}

#[test]
fn counts_are_valgrinds() {
    if !has("valgrind") {
        return;
    }
    let program = victim::build("counts.c", &["-O0"]);
    let (ours, said) = traced(Trace::of(&program).arg("valgrind"));
    let mut theirs = under_valgrind(valgrind().arg(&program).arg("valgrind"));
    // Valgrind counts a failed realloc as an alloc and a free. Heapline counts nothing, because the
    // old block lives on.
    let failed = said("failed_reallocs");
    assert_eq!(failed, 1);
    theirs.allocs -= failed;
    theirs.frees -= failed;
    theirs.bytes -= i64::MAX.unsigned_abs();
    assert_eq!(ours, theirs);
}

#[test]
fn cxx_operators_count_as_in_valgrind() {
    if !has("valgrind") {
        return;
    }
    for flags in ["-O0", "-O2"] {
        let program = victim::build("operators.cpp", &["-std=c++17", flags]);
        let (ours, said) = traced(Trace::of(&program).arg("valgrind"));
        assert_eq!(said("caught"), 50);
        let theirs = under_valgrind(valgrind().arg(&program).arg("valgrind"));
        assert_eq!(ours, theirs, "{flags}");
    }
}

/// A throwing operator new allocates the exception and nothing else. (The nothrow operator also
/// throws inside.)
#[test]
fn a_failed_operator_new_counts_nothing() {
    let program = victim::build("operators.cpp", &["-std=c++17", "-O2"]);
    let (all, said) = traced(Trace::of(&program));
    assert_eq!(said("caught"), 51);
    let (without, _) = traced(Trace::of(&program).arg("valgrind"));
    assert_eq!((all.allocs - without.allocs, all.frees - without.frees), (2, 2), "the exceptions");
    assert_eq!((all.live_blocks, all.live_bytes), (without.live_blocks, without.live_bytes));
}

#[test]
fn a_real_program_counts_as_in_valgrind() {
    if !has("valgrind") || !has("sqlite3") {
        return;
    }
    let sql = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);\
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) INSERT INTO t SELECT i, hex(i) FROM n;\
        CREATE INDEX tb ON t(b); SELECT count(*), sum(length(b)) FROM t WHERE b LIKE '%7%';";
    let (ours, _) = traced(Trace::of("sqlite3").args([":memory:", sql]));
    let theirs = under_valgrind(valgrind().args(["sqlite3", ":memory:", sql]));
    assert_eq!(ours, theirs);
}
