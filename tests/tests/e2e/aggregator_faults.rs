//! The target goes on when the aggregator dies or stops.

use crate::support::trace::{kill, printed};
use crate::support::{Trace, victim, wait_for};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// Returns a victim whose threads hand over blocks for about as long as a test needs.
fn busy(operations: u64) -> Trace {
    Trace::of(victim::build("threads.c", &["-O2"])).arg("4").arg(operations.to_string()).args(["1", "1"])
}

/// Checks by the target's own output that the target did all of the work.
fn assert_finished(output: &[u8], operations: u64) {
    let said = printed(output);
    let made: u64 = [17, 33, 49, 65].iter().map(|size| said[&format!("made_{size}")]).sum();
    assert_eq!(made, 4 * operations, "the target finished its work");
}

/// Waits until the process has ended, whether or not the parent has noticed.
fn wait_for_end(pid: i32) -> Duration {
    let start = Instant::now();
    wait_for("the target's end", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        matches!(state, None | Some('Z')).then_some(())
    });
    start.elapsed()
}

/// Returns whether tracing is on: the process has mapped memory of the arena.
fn is_traced(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains("heapline-arena"))
}

fn untraced_time(operations: u64) -> Duration {
    let trace = busy(operations);
    let start = Instant::now();
    assert!(trace.untraced().status.success());
    start.elapsed()
}

/// Makes this process the parent of orphans, so that a test can read their exit status.
fn adopt_orphans() {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes one number and touches no memory.
    let adopted = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    assert_eq!(adopted, 0);
}

fn exit_code_of(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is valid for the write; the pid is an orphan adopted by this process.
    let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(waited, pid);
    assert!(libc::WIFEXITED(status), "the target was killed: {status:#x}");
    libc::WEXITSTATUS(status)
}

#[test]
fn the_target_outlives_a_killed_aggregator_unharmed() {
    adopt_orphans();
    let operations = 3_000_000;
    let alone = untraced_time(operations);
    let mut running = busy(operations).spawn();
    let target = running.target_pid();
    wait_for("the arena in the target", || is_traced(target).then_some(()));
    kill(running.aggregator_pid(), libc::SIGKILL);
    let rest = wait_for_end(target);
    assert_eq!(exit_code_of(target), 0);
    let mut output = Vec::new();
    running.child.stdout.take().expect("piped").read_to_end(&mut output).expect("nobody holds the pipe any more");
    assert_finished(&output, operations);
    running.child.wait().expect("the killed aggregator");
    assert!(rest < alone * 3 + Duration::from_secs(2), "{rest:?} after the kill, {alone:?} without tracing at all");
}

#[test]
fn a_stopped_aggregator_holds_the_target_for_a_second_only() {
    let operations = 3_000_000;
    let alone = untraced_time(operations);
    let running = busy(operations).spawn();
    let target = running.target_pid();
    wait_for("the arena in the target", || is_traced(target).then_some(()));
    kill(running.aggregator_pid(), libc::SIGSTOP);
    let rest = wait_for_end(target);
    kill(running.aggregator_pid(), libc::SIGCONT);
    let outcome = running.finish().expect_code(0);
    assert_finished(&outcome.output.stdout, operations);
    assert!(rest < alone * 3 + Duration::from_secs(4), "{rest:?} with a stopped aggregator, {alone:?} alone");
    let report = outcome.report(&[]);
    assert_eq!(report.snapshot.end, "stalled");
    let ended = report.snapshot.lost.get("ended").copied().unwrap_or(0);
    let native = report.native();
    assert!(ended > 0, "what came after the end of tracing is counted as lost: {:?}", report.snapshot.lost);
    assert!(native.allocs < 4 * operations, "{} of {} allocations", native.allocs, 4 * operations);
}

#[test]
fn a_signal_to_the_command_reaches_it_and_the_snapshot_is_written() {
    let running = Trace::of("sleep").arg("60").spawn();
    let target = running.target_pid();
    wait_for("the arena in the target", || is_traced(target).then_some(()));
    kill(target, libc::SIGTERM);
    let outcome = running.finish().expect_code(128 + libc::SIGTERM);
    assert_eq!(outcome.report(&[]).snapshot.end, "killed");
}

#[test]
fn a_quiet_target_is_looked_at_a_few_times_a_second() {
    let running = Trace::of("sleep").arg("60").spawn();
    let target = running.target_pid();
    wait_for("the arena in the target", || is_traced(target).then_some(()));
    let aggregator = running.aggregator_pid();
    // The start is not quiet. A second later the aggregator only waits for records.
    std::thread::sleep(Duration::from_secs(1));
    let (before, start) = (sleeps(aggregator), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let (slept, passed) = (sleeps(aggregator) - before, start.elapsed());
    kill(target, libc::SIGTERM);
    running.finish();
    // A thread looks twenty times a second and tells another thread about each look.
    assert!(slept > 0 && slept <= 60 * (passed.as_secs() + 1), "woke {slept} times in {passed:?}");
}

/// How often all threads of a process together went to sleep voluntarily.
fn sleeps(pid: i32) -> u64 {
    let tasks = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).expect("it runs");
    let count = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned));
        line.and_then(|count| count.trim().parse::<u64>().ok()).expect("a number")
    };
    tasks
        .map(|task| std::fs::read_to_string(task.expect("a thread").path().join("status")).expect("its status"))
        .map(count)
        .sum()
}
