//! Attaching to a process that runs with the collector preloaded but idle.

use crate::support::trace::{ctl_ok, kill, report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{programs, stdout_of, wait_for};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// `story.c` with the collector preloaded and nobody there to read.
struct Idle {
    folder: TempDir,
    child: Child,
}

impl Idle {
    fn start() -> Idle {
        let folder = TempDir::new().expect("a folder");
        let preload = folder.path().join("preload.so");
        stdout_of(Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&preload));
        let mut command = Command::new(victim::build("story.c", &["-O0"]));
        command.env("LD_PRELOAD", &preload).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().expect("it starts");
        let mut idle = Idle { folder, child };
        idle.wait();
        idle
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    fn wait(&mut self) {
        self.child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("the victim answers");
    }

    fn step(&mut self) {
        self.child.stdin.as_mut().expect("piped").write_all(b".").expect("the victim listens");
        self.wait();
    }

    fn snapshot_path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An aggregator that has attached, when this returns.
    fn attach(&self, snapshot: &Path, options: &[&str]) -> Child {
        let mut command = Command::new(&programs().aggregator);
        command.args(["--attach", &self.pid().to_string(), "-o"]).arg(snapshot).args(options);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        wait_for("the attached aggregator", || {
            let answer = crate::support::trace::ctl(self.pid(), &["stats"]);
            answer.status.success().then_some(())
        });
        child
    }

    fn finish(mut self) -> i32 {
        drop(self.child.stdin.take());
        self.child.wait().expect("it ends").code().expect("it exits")
    }
}

fn ended(child: Child) -> Output {
    let output = child.wait_with_output().expect("the aggregator ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn what_happens_after_the_attach_is_recorded() {
    let mut victim = Idle::start();
    victim.step();
    let snapshot = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    let before = stats(victim.pid());
    assert_eq!((before.native().allocs, before.native().blocks), (0, 0), "what was before is not known");
    victim.step();
    victim.step();
    let after = stats(victim.pid());
    assert_eq!((after.native().allocs, after.native().current), (1, 30_000));
    assert_eq!(after.snapshot.untracked_frees, 1, "the big block is older than the attach");
    ctl_ok(victim.pid(), &["detach"]);
    ended(aggregator);
    let report = report_on(&snapshot, &[]);
    assert_eq!((report.snapshot.end.as_str(), report.snapshot.contradictions), ("detached", 0));
    assert_eq!(report.at_line("story.c", line_of("story.c", "// LINE small")), (30_000, 1));
    victim.step();
    assert_eq!(victim.finish(), 97, "it goes on, and ends as ever");
}

#[test]
fn it_can_be_attached_again_and_again() {
    let mut victim = Idle::start();
    for round in 0..3 {
        let snapshot = victim.snapshot_path(&format!("{round}.snap.zst"));
        let aggregator = victim.attach(&snapshot, &[]);
        victim.step();
        kill(i32::try_from(aggregator.id()).expect("a pid"), libc::SIGINT);
        ended(aggregator);
        let report = report_on(&snapshot, &[]);
        assert_eq!(report.snapshot.end, "detached", "Ctrl-C detaches and still writes");
        let wanted = [(1, 50_000_000, 0), (0, 0, 1), (1, 30_000, 0)][round];
        let native = report.native();
        assert_eq!((native.allocs, native.current, report.snapshot.untracked_frees), wanted, "round {round}");
    }
    assert_eq!(victim.finish(), 97);
}

#[test]
fn duration_detaches_by_itself() {
    let victim = Idle::start();
    let snapshot = victim.snapshot_path("d.snap.zst");
    let aggregator = victim.attach(&snapshot, &["--duration", "1"]);
    ended(aggregator);
    assert_eq!(report_on(&snapshot, &[]).snapshot.end, "detached");
    victim.finish();
}

#[test]
fn the_end_of_the_process_ends_the_aggregator() {
    let victim = Idle::start();
    let snapshot = victim.snapshot_path("e.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    let folder = victim.folder.path().to_owned();
    kill(victim.pid(), libc::SIGKILL);
    let Idle { folder: kept, mut child } = victim;
    child.wait().expect("killed");
    ended(aggregator);
    assert!(folder.exists());
    let report = report_on(&snapshot, &[]);
    assert!(["killed", "exited"].contains(&report.snapshot.end.as_str()), "{}", report.snapshot.end);
    drop(kept);
}

#[test]
fn an_idle_collector_is_no_burden() {
    let victim = Idle::start();
    let maps = std::fs::read_to_string(format!("/proc/{}/status", victim.pid())).expect("it runs");
    let resident = maps.lines().find_map(|l| l.strip_prefix("RssShmem:")).expect("Linux says it");
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib <= 64, "{kib} KiB of the arena are in memory before anybody reads it");
    victim.finish();
}
