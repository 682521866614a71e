//! Attaching to waiting programs, for every known way to wait.

use crate::support::stepped::{Stepped, attach_command, ended};
use crate::support::trace::report_on;
use crate::support::{stdout_of, victim, wait_for};
use std::path::Path;
use std::process::Command;

/// Whether all threads of a process sleep.
fn sleeps(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    tasks.map(stat).all(|stat| stat.contains(") S "))
}

/// No thread of the victim does anything else, so the wait itself must be a point where a library
/// can be loaded. The victim goes on waiting and ends as usual.
#[test]
fn a_process_that_waits_is_attached_to_whatever_it_waits_for() {
    assert_all_are_attached_to(&victim::build("waits.c", &["-O1"]));
}

/// Checks that an aggregator attaches to a build of `waits.c`, whatever it waits for.
pub fn assert_all_are_attached_to(program: &Path) {
    let kinds = stdout_of(Command::new(program).arg("list"));
    assert!(kinds.lines().count() >= 60, "{kinds}");
    let mut refused = Vec::new();
    for kind in kinds.lines() {
        let victim = Stepped::start(Command::new(program).arg(kind));
        wait_for(kind, || sleeps(victim.pid()).then_some(()));
        let snapshot = victim.snapshot_path("a.snap.zst");
        let attached = attach_command(victim.pid(), &snapshot).args(["--duration", "0.01"]).output().expect("it runs");
        let said = String::from_utf8_lossy(&attached.stderr).into_owned();
        if attached.status.success() {
            report_on(&snapshot, &[]).assert_exact();
        } else {
            refused.push(format!("{kind}: {said}"));
        }
        assert_eq!(victim.finish(), 0, "{kind}: it goes on waiting, then goes on\n{said}");
    }
    assert!(refused.is_empty(), "{}", refused.concat());
}

/// For a thread that is never at a safe point, `--wait` says how long to look for a safe point. The
/// refusal says so.
#[test]
fn how_long_is_looked_for_a_safe_point_can_be_said() {
    let program = victim::build("waits.c", &["-O1"]);
    let victim = Stepped::start(Command::new(&program).arg("handler"));
    wait_for("the handler", || sleeps(victim.pid()).then_some(()));
    let attach = |options: &[&str]| {
        let mut command = attach_command(victim.pid(), &victim.snapshot_path("a.snap.zst"));
        let output = command.args(options).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("it is in a signal handler") && said.contains("--wait"), "{said}");
        let (_, rounds) = said.split_once("in ").expect("so many looks");
        rounds
            .split_once(" looks")
            .and_then(|(rounds, _)| rounds.rsplit(' ').next()?.parse::<u32>().ok())
            .expect("a number")
    };
    assert_eq!(attach(&["--wait", "0"]), 10, "all threads are looked at that often at least");
    assert!(attach(&["--wait", "0.6"]) > 10);
    assert_eq!(victim.finish(), 0);
}

/// `--wait` applies to processes whose thread must be borrowed. A process started with the
/// collector is attached to at once.
#[test]
fn a_wait_is_no_delay() {
    let program = victim::build("waits.c", &["-O1"]);
    let victim = Stepped::start(Command::new(&program).arg("read"));
    let snapshot = victim.snapshot_path("a.snap.zst");
    let mut once = attach_command(victim.pid(), &snapshot);
    let attached = once.args(["--wait", "3600", "--duration", "0.01"]).spawn().expect("it starts");
    assert!(ended(attached).contains("attached to"));
    assert_eq!(victim.finish(), 0);
}
