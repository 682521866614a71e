//! Attaching to a process with a preloaded but idle collector.

use crate::support::stepped::{Stepped, detach, ended};
use crate::support::trace::{ctl_ok, kill, read_snapshot, report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{programs, stdout_of};
use heapline_shared_format::snapshot::Begun;
use std::process::Command;
use tempfile::TempDir;

/// Starts `story.c` with the collector preloaded and without an aggregator.
fn idle() -> Stepped {
    let folder = TempDir::new().expect("a folder");
    let preload = folder.path().join("preload.so");
    stdout_of(Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&preload));
    Stepped::start(Command::new(victim::build("story.c", &["-O0"])).env("LD_PRELOAD", &preload))
}

#[test]
fn what_happens_after_the_attach_is_recorded() {
    let mut victim = idle();
    victim.step(b'.');
    let snapshot = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    let before = stats(victim.pid());
    assert_eq!((before.native().allocs, before.native().blocks), (0, 0), "what was before is not known");
    victim.step(b'.');
    victim.step(b'.');
    let after = stats(victim.pid());
    assert_eq!((after.native().allocs, after.native().current), (1, 30_000));
    assert_eq!(after.snapshot.untracked_frees, 1, "the big block is older than the attach");
    let text = ctl_ok(victim.pid(), &["stats"]);
    assert!(text.contains("; 1 allocation of 29.3 KiB, 0 frees since the attach\n"), "{text}");
    let said = ctl_ok(victim.pid(), &["detach"]);
    assert!(said.starts_with("peak since the attach 29.3 KiB native; live 29.3 KiB native in 1 block; "), "{said}");
    assert!(ended(aggregator).contains("heapline: peak since the attach 29.3 KiB native; "));
    let report = report_on(&snapshot, &[]);
    assert_eq!((report.snapshot.end.as_str(), report.snapshot.contradictions), ("detached", 0));
    assert_eq!(read_snapshot(&snapshot).meta.begun, Begun::Attach);
    assert_eq!(report.at_line("story.c", line_of("story.c", "// LINE small")), (30_000, 1));
    victim.step(b'.');
    assert_eq!(victim.finish(), 97, "it goes on, and ends as ever");
}

#[test]
fn it_can_be_attached_again_and_again() {
    let mut victim = idle();
    for round in 0..3 {
        let snapshot = victim.snapshot_path(&format!("{round}.snap.zst"));
        let aggregator = victim.attach(&snapshot, &[]);
        victim.step(b'.');
        detach(aggregator);
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
    let victim = idle();
    let snapshot = victim.snapshot_path("d.snap.zst");
    let aggregator = victim.attach(&snapshot, &["--duration", "1"]);
    ended(aggregator);
    assert_eq!(report_on(&snapshot, &[]).snapshot.end, "detached");
    victim.finish();
}

#[test]
fn the_end_of_the_process_ends_the_aggregator() {
    let victim = idle();
    let snapshot = victim.snapshot_path("e.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    kill(victim.pid(), libc::SIGKILL);
    let Stepped { folder: kept, mut child, .. } = victim;
    child.wait().expect("killed");
    ended(aggregator);
    let report = report_on(&snapshot, &[]);
    assert!(["killed", "exited"].contains(&report.snapshot.end.as_str()), "{}", report.snapshot.end);
    drop(kept);
}

#[test]
fn an_idle_collector_is_no_burden() {
    let victim = idle();
    let maps = std::fs::read_to_string(format!("/proc/{}/status", victim.pid())).expect("it runs");
    let resident = maps.lines().find_map(|l| l.strip_prefix("RssShmem:")).expect("Linux says it");
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib <= 64, "{kib} KiB of the arena are in memory before anybody reads it");
    victim.finish();
}
