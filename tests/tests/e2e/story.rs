//! The example of peaks from tracemalloc's documentation: a big temporary block, reset-peak, a
//! small block.

use crate::support::trace::{ctl, ctl_ok, report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{Running, Trace};
use std::io::{Read, Write};

/// A victim that takes a step per byte of input and answers when ready for the next step.
struct Stepper(Running);

impl Stepper {
    fn wait(&mut self) {
        let stdout = self.0.child.stdout.as_mut().expect("piped");
        let mut byte = [0];
        stdout.read_exact(&mut byte).expect("the victim answers");
    }

    fn step(&mut self) {
        self.0.child.stdin.as_mut().expect("piped").write_all(b".").expect("the victim listens");
        self.wait();
    }
}

const KEPT: u64 = 1000;
const BIG: u64 = 50_000_000;
const SMALL: u64 = 30_000;

fn current_and_peak(pid: i32) -> (u64, u64) {
    let stats = stats(pid);
    (stats.native().current, stats.native().peak)
}

#[test]
fn a_big_temporary_is_seen_in_the_peak_until_it_is_reset() {
    let mut victim = Stepper(Trace::of(victim::build("story.c", &["-O0"])).spawn());
    victim.wait();
    let pid = victim.0.target_pid();
    assert_eq!(current_and_peak(pid), (KEPT, KEPT));
    victim.step();
    assert_eq!(current_and_peak(pid), (KEPT + BIG, KEPT + BIG));
    victim.step();
    assert_eq!(current_and_peak(pid), (KEPT, KEPT + BIG), "freed, and still the peak");

    let at_big = victim.0.snapshot_path().with_file_name("big.snap.zst");
    ctl_ok(pid, &["snapshot", "-o", at_big.to_str().expect("UTF-8")]);
    ctl_ok(pid, &["reset-peak"]);
    assert_eq!(current_and_peak(pid), (KEPT, KEPT));
    victim.step();
    assert_eq!(current_and_peak(pid), (KEPT + SMALL, KEPT + SMALL));
    victim.step();
    assert_eq!(current_and_peak(pid), (KEPT, KEPT + SMALL));
    ctl_ok(pid, &["reset-peak"]);
    ctl_ok(pid, &["reset-peak"]);
    assert_eq!(current_and_peak(pid), (KEPT, KEPT), "any number of times");

    let line = |marker: &str| line_of("story.c", &format!("// LINE {marker}"));
    let peak = report_on(&at_big, &["--by", "lineno", "--at", "peak"]);
    assert_eq!(peak.snapshot.end, "running");
    assert_eq!(peak.at, "peak");
    assert_eq!((peak.total.size, peak.total.count, peak.total.groups), (KEPT + BIG, 2, 2));
    assert_eq!(peak.stats[0].most_recent().lineno, line("big"), "the biggest comes first");
    assert_eq!(peak.at_line("story.c", line("big")), (BIG, 1));
    assert_eq!(peak.at_line("story.c", line("kept")), (KEPT, 1));
    let live = report_on(&at_big, &["--by", "lineno"]);
    assert_eq!((live.total.size, live.total.count), (KEPT, 1), "what is live is not what was live at the peak");

    victim.0.child.stdin.take();
    let outcome = victim.0.finish();
    assert_eq!(outcome.status().code(), Some(97), "the victim's input ended");
    let end = outcome.report(&["--at", "total"]);
    assert_eq!((end.total.size, end.total.count), (KEPT + BIG + SMALL, 3));
    assert_eq!(end.native().peak, KEPT, "reset for the last time");
}

#[test]
fn clear_traces_forgets_and_goes_on() {
    let mut victim = Stepper(Trace::of(victim::build("story.c", &["-O0"])).spawn());
    victim.wait();
    let pid = victim.0.target_pid();
    victim.step();
    ctl_ok(pid, &["clear-traces"]);
    assert_eq!(current_and_peak(pid), (0, 0));
    victim.step();
    let after_free = stats(pid);
    assert_eq!(after_free.native().current, 0, "the freed block is not known any more");
    assert_eq!(after_free.contradictions(), 0, "and that is no contradiction");
    victim.step();
    assert_eq!(current_and_peak(pid), (SMALL, SMALL));
    victim.0.child.stdin.take();
    let end = victim.0.finish().report(&[]);
    assert_eq!((end.native().allocs, end.native().current), (1, SMALL));
}

#[test]
fn lookup_tells_who_allocated_a_block() {
    let mut victim = Stepper(Trace::of(victim::build("story.c", &["-O0"])).spawn());
    victim.wait();
    let pid = victim.0.target_pid();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the victim's mappings");
    let heap = maps.lines().find(|l| l.ends_with("[heap]")).expect("it has a heap").split('-').next().expect("a range");
    // The first block of a fresh glibc heap lies behind the thread cache's 0x290 bytes and a chunk
    // head.
    let address = u64::from_str_radix(heap, 16).expect("hexadecimal") + 0x290 + 0x10;
    let found = ctl_ok(pid, &["lookup", &format!("0x{address:x}")]);
    assert!(found.contains("1000"), "its size: {found}");
    let missing = ctl(pid, &["lookup", "0x10"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&missing.stderr).lines().count(), 1, "one line says so");
    victim.0.child.stdin.take();
    victim.0.finish();
}
