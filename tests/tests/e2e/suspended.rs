//! A suspended aggregator does not hold the target's threads for long: the target goes on.

use crate::support::stepped::{STEPS, Stepped, attach_command};
use crate::support::trace::{ctl, kill, report_on};
use crate::support::{Random, rounds, victim, wait_for};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn victim() -> Stepped {
    Stepped::start(&mut Command::new(victim::build("attached.c", &["-O1"])))
}

fn field(path: &str, name: &str) -> String {
    let status = std::fs::read_to_string(path).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    value.trim_start_matches(':').trim().to_owned()
}

/// Waits until nobody traces any thread of a process.
fn await_freedom(pid: i32, what: &str) {
    wait_for(what, || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
        let mut tracers = tasks.map(|task| field(&format!("{}/status", task.path().display()), "TracerPid"));
        tracers.all(|tracer| tracer == "0" || tracer.is_empty()).then_some(())
    });
}

fn await_stop(aggregator: &Child) {
    let status = format!("/proc/{}/status", aggregator.id());
    wait_for("the aggregator's stop", || field(&status, "State").starts_with('T').then_some(()));
}

fn id(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("a pid")
}

/// A stopped tracer process cannot release the threads by itself. The aggregator gives the tracer
/// up and prints a line about it.
#[test]
fn a_tracer_that_is_stopped_is_given_up() {
    for step in STEPS {
        let victim = victim();
        let mut command = attach_command(victim.pid(), &victim.snapshot_path("a.snap.zst"));
        let output = command.env("HEAPLINE_STOP_AT", step).output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{step}: {said}");
        assert!(said.contains("was suspended") && said.contains("try again"), "{step}: {said}");
        await_freedom(victim.pid(), step);
        victim.assert_can_be_traced(step);
    }
}

/// The tracer is stopped while all threads are stopped in order to change direct calls.
#[test]
fn all_threads_of_a_process_are_let_go_too() {
    let program = victim::build("ownheap.c", &["-O2", "-fPIE", "-pie"]);
    let mut victim = Stepped::start(Command::new(program).arg("4"));
    victim.step(b'b');
    let mut command = attach_command(victim.pid(), &victim.snapshot_path("a.snap.zst"));
    let output = command.env("HEAPLINE_STOP_AT", "frozen").args(["--duration", "0.05"]).output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    // On an overloaded machine not all threads stop in time, so the tracer does not reach the step
    // `frozen`.
    assert!(output.status.success() || said.contains("was suspended"), "{said}");
    await_freedom(victim.pid(), "frozen");
    victim.steps("emcrtsf");
    assert_eq!(victim.finish(), 0);
}

/// Stops the aggregator itself. The injection completes meanwhile, and the session begins when the
/// aggregator goes on.
#[test]
fn an_aggregator_that_is_stopped_holds_nobody() {
    for step in STEPS {
        let mut victim = victim();
        let snapshot = victim.snapshot_path("a.snap.zst");
        let mut command = attach_command(victim.pid(), &snapshot);
        command.env("HEAPLINE_STOP_AT", step).env("HEAPLINE_SIGNAL_PARENT", "1");
        let mut aggregator = command.spawn().expect("it starts");
        await_stop(&aggregator);
        await_freedom(victim.pid(), step);
        victim.steps("mMf");
        wait_for("the attached aggregator", || {
            kill(id(&aggregator), libc::SIGCONT);
            ctl(victim.pid(), &["stats"]).status.success().then_some(())
        });
        victim.steps("mMf");
        kill(id(&aggregator), libc::SIGINT);
        // The detach has the same steps.
        let status = wait_for("the end", || {
            kill(id(&aggregator), libc::SIGCONT);
            aggregator.try_wait().expect("ours")
        });
        assert!(status.success(), "{step}");
        await_freedom(victim.pid(), step);
        let report = report_on(&snapshot, &[]);
        assert_eq!((report.native().allocs, report.native().frees), (2, 2), "{step}");
        victim.assert_can_be_traced(step);
    }
}

/// A killed aggregator takes the tracer along.
#[test]
fn a_tracer_does_not_outlive_its_aggregator() {
    for step in STEPS {
        let victim = victim();
        let mut command = attach_command(victim.pid(), &victim.snapshot_path("a.snap.zst"));
        command.env("HEAPLINE_DIE_AT", step).env("HEAPLINE_SIGNAL_PARENT", "1").stderr(Stdio::null());
        assert!(!command.status().expect("it runs").success(), "{step}");
        await_freedom(victim.pid(), step);
        victim.assert_can_be_traced(step);
    }
}

/// Ctrl-Z stops all processes of a job, at any moment.
#[test]
fn a_stop_of_the_whole_job_holds_nobody() {
    let mut random = Random(11);
    for round in 0..rounds("HEAPLINE_KILLS", 8) {
        let mut victim = victim();
        let mut command = attach_command(victim.pid(), &victim.snapshot_path("a.snap.zst"));
        let mut aggregator = command.process_group(0).spawn().expect("it starts");
        std::thread::sleep(Duration::from_micros(random.below(50_000)));
        let signal = [libc::SIGTSTP, libc::SIGSTOP][usize::try_from(round % 2).expect("small")];
        kill(-id(&aggregator), signal);
        await_stop(&aggregator);
        await_freedom(victim.pid(), "a job that is stopped");
        victim.steps("mMf");
        kill(id(&aggregator), libc::SIGKILL);
        aggregator.wait().expect("it ends");
        victim.assert_can_be_traced(&format!("round {round}"));
    }
}
