//! A target that writes random words over the memory shared with the aggregator.

use crate::support::{Trace, rounds, victim};
use std::time::{Duration, Instant};

/// Upper limit of the aggregator's memory, in bytes, whatever a target writes.
const MOST_RESIDENT: u64 = 1 << 30;

/// Largest resident memory of a process so far, in bytes.
fn peak_resident(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
}

/// The shared memory may contain anything, and the snapshot may be nonsense. The aggregator ends in
/// time, by itself, without a panic and without using up the machine's memory.
#[test]
fn an_arena_that_is_scribbled_over_spoils_nothing_but_the_snapshot() {
    let program = victim::build("scribbler.c", &["-O1"]);
    for seed in 0..rounds("HEAPLINE_SEEDS", 5) {
        let trace = Trace::of(&program).arg(seed.to_string()).arg("400").option("--no-follow");
        let begun = Instant::now();
        let running = trace.spawn();
        let pid = running.aggregator_pid();
        let watch = std::thread::spawn(move || {
            let mut most = 0;
            while let Some(now) = peak_resident(pid) {
                most = most.max(now);
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        let outcome = running.finish();
        let said = outcome.stderr();
        assert!(!said.contains("panicked") && !said.contains("please report"), "seed {seed}: {said}");
        assert!(outcome.status().code().is_some(), "seed {seed}: {:?}\n{said}", outcome.status());
        assert!(begun.elapsed() < Duration::from_secs(60), "seed {seed}");
        let most = watch.join().expect("the watch does not panic");
        assert!(most < MOST_RESIDENT, "seed {seed}: {most} bytes");
    }
}
