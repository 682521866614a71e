//! Programs with a built-in collector around their allocator: `heapline_collector::Traced`.

use crate::sampling::json;
use crate::support::report::Report;
use crate::support::trace::{ctl_ok, printed, report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{Trace, programs, wait_for};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use tempfile::TempDir;

/// Compiler flags of a dynamically linked victim. The constants below are the other builds of the
/// victim.
const DYNAMIC: &[&str] = &["-O"];
const STATIC: &[&str] = &["-O", "-Ctarget-feature=+crt-static"];
const STATIC_IN_PLACE: &[&str] = &["-O", "-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Cpanic=abort"];
const STATIC_UNOPTIMISED: &[&str] = &["-Ctarget-feature=+crt-static"];
const OWN: &[&str] = &["-O", "--cfg", "own"];
const OWN_STATIC: &[&str] = &["-O", "--cfg", "own", "-Ctarget-feature=+crt-static"];

fn build(flags: &[&str]) -> PathBuf {
    victim::build_rust("traced.rs", flags)
}

/// The victim's last printed counts.
fn counted(stdout: &str) -> BTreeMap<String, u64> {
    printed(stdout.as_bytes())
}

fn assert_equals(report: &Report, counted: &BTreeMap<String, u64>, what: &str) {
    report.assert_exact();
    let native = report.native();
    let found = [native.allocs, native.frees, native.allocated_bytes, native.current];
    let wanted = ["allocs", "frees", "bytes", "current"].map(|name| counted[name]);
    assert_eq!(found, wanted, "{what}: allocs, frees, bytes, current");
    assert_eq!(report.snapshot.untracked_frees, 0, "{what}");
}

#[test]
fn a_static_program_is_traced_from_its_first_instruction() {
    for flags in [STATIC, STATIC_IN_PLACE, STATIC_UNOPTIMISED, OWN_STATIC] {
        let outcome = Trace::of(build(flags)).input("mixed 0\nerrno\nline 100\ndrop\nmixed 0\n").run().expect_code(7);
        let report = outcome.report(&["--raw-frames"]);
        let counted = counted(&outcome.stdout());
        assert_equals(&report, &counted, &format!("{flags:?}"));
        assert_eq!(report.native().peak, counted["peak"], "{flags:?}");
        let report = outcome.report(&["--at", "total"]);
        let line = line_of("traced.rs", "// LINE alloc");
        assert_eq!(report.at_line("traced.rs", line), (33_300, 100), "{flags:?}: blamed on who asked");
    }
}

#[test]
fn threads_and_reallocations_are_counted_as_the_program_counts_them() {
    for flags in [STATIC, OWN_STATIC] {
        let outcome = Trace::of(build(flags)).input("mixed 4\nmixed 3\ndrop\nmixed 2\n").run().expect_code(7);
        assert_equals(&outcome.report(&[]), &counted(&outcome.stdout()), &format!("{flags:?}"));
    }
}

#[test]
fn every_stack_ends_at_the_root_and_is_what_a_fresh_walk_finds() {
    for flags in [STATIC, STATIC_IN_PLACE, STATIC_UNOPTIMISED] {
        let trace = Trace::of(build(flags)).env("HEAPLINE_VERIFY", "1").input("mixed 2\nline 10\n");
        let outcome = trace.run().expect_code(7);
        let snapshot = outcome.snapshot();
        // Every snapshot has a truncated stack without frames, which stands for an unknown stack.
        let truncated = snapshot.stacks.iter().filter(|stack| stack.truncated && stack.total_nframe > 0).count();
        let notes = snapshot.meta.notes.join("\n");
        assert!(truncated == 0 && notes.contains(" 0 of them differed"), "{flags:?}: {truncated} truncated; {notes}");
        let report = outcome.report(&["--by", "traceback", "--at", "total", "--filter", "*/traced.rs"]);
        let has_main = |frame: &crate::support::report::Frame| {
            frame.function.as_deref().is_some_and(|name| name.contains("main") || name.contains("thread"))
        };
        assert!(report.stats.iter().all(|stat| stat.traceback.iter().any(has_main)), "{flags:?}");
    }
}

/// With a loader there is also a preloaded collector, which sees malloc. A block passing through
/// both collectors counts once.
#[test]
fn beside_a_preloaded_collector_nothing_counts_twice() {
    let line = line_of("traced.rs", "// LINE alloc");
    for flags in [DYNAMIC, OWN] {
        let outcome = Trace::of(build(flags)).input("line 5000\nmixed 2\nline 5000\n").run().expect_code(7);
        let report = outcome.report(&["--at", "total"]);
        report.assert_exact();
        assert_eq!(report.at_line("traced.rs", line), (2 * 5000 * 333, 10_000), "{flags:?}");
        // With an interval of 1 byte each block is a sample.
        let trace = Trace::of(build(flags)).input("line 5000\nmixed 2\nline 5000\n").option("--sample").option("1");
        let outcome = trace.run().expect_code(7);
        let report = json(&outcome, &["--at", "total", "--filter", &format!("*/traced.rs:{line}")]);
        let count = report["total"]["count"].as_u64().expect("a number");
        assert!((9_990..=10_000).contains(&count), "{flags:?}: {count}");
    }
}

/// The victim without an aggregator, as in production.
struct Idle {
    folder: TempDir,
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Idle {
    fn start(program: &Path, preload: bool) -> Idle {
        let folder = TempDir::new().expect("a folder");
        let mut command = Command::new(program);
        if preload {
            let library = folder.path().join("preload.so");
            let written = Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&library).status();
            assert!(written.expect("it runs").success());
            command.env("LD_PRELOAD", &library).env("ALLOW_PRELOAD", "1");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("it speaks");
        assert_eq!(line, "ready\n");
        Idle { folder, child, answers }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Takes a step. Returns the victim's counts since the start.
    fn step(&mut self, step: &str) -> BTreeMap<String, u64> {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{step}").expect("it listens");
        let mut said = String::new();
        while !said.ends_with("done\n") {
            assert!(self.answers.read_line(&mut said).expect("it speaks") > 0, "it ended: {said}");
        }
        counted(&said)
    }

    fn attach(&self) -> (Child, PathBuf) {
        let snapshot = self.folder.path().join("a.snap.zst");
        let mut command = Command::new(&programs().aggregator);
        command.args(["--attach", &self.pid().to_string(), "-o"]).arg(&snapshot);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        wait_for("the attached aggregator", || {
            crate::support::trace::ctl(self.pid(), &["stats"]).status.success().then_some(())
        });
        (child, snapshot)
    }
}

#[test]
fn a_running_program_can_be_attached_to_again_and_again() {
    for flags in [STATIC, OWN_STATIC, DYNAMIC, OWN] {
        let mut idle = Idle::start(&build(flags), false);
        idle.step("mixed 2");
        for round in 0..3 {
            let before = idle.step("line 1");
            let (aggregator, snapshot) = idle.attach();
            idle.step("mixed 3");
            idle.step("drop");
            let after = idle.step("mixed 0");
            let what = format!("{flags:?}, round {round}");
            let live = stats(idle.pid());
            ctl_ok(idle.pid(), &["detach"]);
            assert!(aggregator.wait_with_output().expect("it ends").status.success());
            let report = report_on(&snapshot, &[]);
            report.assert_exact();
            assert_eq!(report.native(), live.native(), "{what}");
            let since = |name: &str| after[name].wrapping_sub(before[name]);
            let native = report.native();
            assert_eq!((native.allocs, native.allocated_bytes), (since("allocs"), since("bytes")), "{what}");
            assert_eq!(native.frees + report.snapshot.untracked_frees, since("frees"), "{what}");
        }
        drop(idle.child.stdin.take());
        assert_eq!(idle.child.wait().expect("it ends").code(), Some(7));
    }
}

/// With an idle preloaded collector beside the built-in collector, the recording collector is
/// chosen at the attach.
#[test]
fn beside_an_idle_preloaded_collector_nothing_counts_twice() {
    let line = line_of("traced.rs", "// LINE alloc");
    for flags in [DYNAMIC, OWN] {
        let mut idle = Idle::start(&build(flags), true);
        idle.step("line 10");
        let (aggregator, snapshot) = idle.attach();
        idle.step("line 2000");
        ctl_ok(idle.pid(), &["detach"]);
        assert!(aggregator.wait_with_output().expect("it ends").status.success());
        let report = report_on(&snapshot, &["--at", "total"]);
        report.assert_exact();
        assert_eq!(report.at_line("traced.rs", line), (2000 * 333, 2000), "{flags:?}");
        drop(idle.child.stdin.take());
        assert_eq!(idle.child.wait().expect("it ends").code(), Some(7));
    }
}

/// A panic in the collector must not reach the program's own panic handling, which prints and may
/// abort.
#[test]
fn a_fault_of_the_collector_ends_tracing_and_nothing_else() {
    for flags in [STATIC, STATIC_IN_PLACE, STATIC_UNOPTIMISED, OWN] {
        for site in ["init", "thread", "segment", "rule", "stack", "module"] {
            let trace = Trace::of(build(flags)).env("HEAPLINE_FAULT", site);
            let own_panic = if flags.contains(&"-Cpanic=abort") { "" } else { "panic\n" };
            let outcome = trace.input(format!("mixed 3\n{own_panic}mixed 0\n")).run().expect_code(7);
            let what = format!("{flags:?} {site}");
            assert!(outcome.stdout().ends_with("done\n"), "{what}");
            let [theirs, own]: [Vec<&str>; 2] = {
                let text = outcome.output.stderr.as_slice();
                let text = std::str::from_utf8(text).expect("UTF-8");
                let (own, theirs) = text.lines().partition(|line| line.starts_with("heapline"));
                [theirs, own]
            };
            // Other lines are the program's own panic and Rust's note about backtraces.
            assert!(theirs.iter().all(|line| !line.contains("HEAPLINE_FAULT")), "{what}: {theirs:?}");
            assert!(own.iter().any(|line| line.contains("the collector failed")), "{what}: {own:?}");
            assert_eq!(outcome.report(&[]).snapshot.end, "stalled", "{what}");
        }
    }
}

#[test]
fn the_program_and_its_children_see_nothing_of_it() {
    let outcome = Trace::of(build(STATIC)).input("spawn\nmixed 0\n").run().expect_code(7);
    assert_equals(&outcome.report(&[]), &counted(&outcome.stdout()), "with a child");
    let disabled = Trace::of(build(STATIC)).env("HEAPLINE_DISABLE", "1").input("mixed 1\n").run().expect_code(7);
    assert_eq!(disabled.report(&[]).native().allocs, 0);
}

/// Without the note in the executable a static program runs untraced as usual.
#[test]
fn the_note_outlives_strip() {
    let stripped = victim::stripped(&build(STATIC));
    let outcome = Trace::of(&stripped).input("mixed 0\n").run().expect_code(7);
    assert_equals(&outcome.report(&[]), &counted(&outcome.stdout()), "stripped");
    let without = victim::build("counts.c", &["-O0", "-static"]);
    assert!(Trace::of(without).run().stderr().contains("statically linked"));
}
