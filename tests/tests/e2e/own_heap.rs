//! Programs that contain an allocator and call the allocator directly, without a table of pointers.

use crate::support::stepped::{Stepped, attach_command, detach};
use crate::support::trace::{report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{rounds, skip};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Compiler flags. From -O2 on the compiler relies on knowing which registers the program's own
/// malloc changes.
const COMPILED: [&[&str]; 5] = [
    &["-O0"],
    &["-O2"],
    &["-O2", "-flto", "-fno-pie", "-no-pie"],
    &["-O3", "-march=native", "-fipa-ra", "-fipa-stack-alignment"],
    &["-O2", "-s"],
];

fn victim_built(flags: &[&str], threads: &str) -> Stepped {
    Stepped::start(Command::new(victim::build("ownheap.c", &[flags, &["-pthread"]].concat())).arg(threads))
}

#[test]
fn its_direct_calls_are_counted_once_and_led_back() {
    for flags in COMPILED {
        let mut victim = victim_built(flags, "0");
        victim.steps("mcrts");
        let code = victim.line(b'a');
        for round in 0..2 {
            let snapshot = victim.snapshot_path("a.snap.zst");
            let aggregator = victim.attach(&snapshot, &[]);
            assert_ne!(victim.line(b'a'), code, "{flags:?}, round {round}: its calls are changed");
            victim.steps("mmcrts");
            let now = stats(victim.pid());
            assert_eq!((now.native().allocs, now.native().current), (6, 7677), "{flags:?}, round {round}");
            victim.steps("f");
            detach(aggregator);
            let report = report_on(&snapshot, &["--at", "total"]);
            report.assert_exact();
            assert_eq!(
                (report.native().allocs, report.native().frees, report.native().current),
                (6, 6, 0),
                "{flags:?}"
            );
            assert_eq!(report.snapshot.untracked_frees, if round == 0 { 5 } else { 0 }, "{flags:?}");
            if !flags.contains(&"-s") {
                let rows = ["direct", "cleared", "moved"]
                    .map(|line| report.at_line("ownheap.c", line_of("ownheap.c", &format!("// LINE {line}"))));
                assert_eq!(rows, [(2000, 2), (600, 1), (5000, 1)], "{flags:?}");
            }
            assert_eq!(victim.line(b'a'), code, "{flags:?}, round {round}: its code is as it was");
        }
        victim.steps("mcrtsf");
        assert_eq!(victim.finish(), 0, "{flags:?}");
    }
}

#[test]
fn its_threads_run_on_through_many_attaches() {
    for flags in COMPILED {
        let mut victim = victim_built(flags, "8");
        victim.step(b'b');
        let mut seen = 0;
        for _ in 0..rounds("HEAPLINE_ATTACHES", 4) {
            let snapshot = victim.snapshot_path("a.snap.zst");
            let aggregator = victim.attach(&snapshot, &[]);
            std::thread::sleep(Duration::from_millis(60));
            detach(aggregator);
            let report = report_on(&snapshot, &[]);
            report.assert_exact();
            // On an overloaded machine not all threads stop in time. In this case the calls stay as
            // they are.
            seen += u32::from(report.native().allocs > 0);
        }
        assert!(seen > 0, "{flags:?}");
        victim.step(b'e');
        assert_eq!(victim.finish(), 0, "{flags:?}: no block was two threads'");
    }
}

/// The slot of a thread in a session is not given to others while the thread may wake up and use
/// the slot.
#[test]
fn a_thread_that_sleeps_through_a_session_meets_nobody_in_the_next() {
    let mut victim = victim_built(COMPILED[1], "8");
    for steps in ["m", "be", "bmmme", "be", "bmmme"] {
        let snapshot = victim.snapshot_path("a.snap.zst");
        let aggregator = victim.attach(&snapshot, &[]);
        for step in steps.bytes() {
            victim.step(step);
            std::thread::sleep(Duration::from_millis(20));
        }
        detach(aggregator);
        let report = report_on(&snapshot, &[]);
        report.assert_exact();
        let own = steps.matches('m').count() as u64;
        assert_eq!(report.at_line("ownheap.c", line_of("ownheap.c", "// LINE direct")).1, own, "{steps}");
    }
    assert_eq!(victim.finish(), 0);
}

/// The aggregator dies while all threads are stopped and some calls lead to the collector.
#[test]
fn it_survives_the_aggregators_death_while_its_calls_are_changed() {
    let mut deaths = 0;
    for round in 0..rounds("HEAPLINE_KILLS", 3) {
        let mut victim = victim_built(COMPILED[1], "4");
        victim.step(b'b');
        let snapshot = victim.snapshot_path("a.snap.zst");
        let mut dying = attach_command(victim.pid(), &snapshot);
        dying.env("HEAPLINE_DIE_AT", "frozen").args(["--duration", "0.05"]).stderr(Stdio::null());
        // On an overloaded machine not all threads stop in time, so the aggregator does not reach
        // the step `frozen`.
        deaths += u32::from(!dying.status().expect("it runs").success());
        victim.steps("emcrtsf");
        let aggregator = victim.attach(&snapshot, &[]);
        victim.steps("mcrtsf");
        detach(aggregator);
        let report = report_on(&snapshot, &[]);
        report.assert_exact();
        assert_eq!((report.native().allocs, report.native().frees), (5, 5), "round {round}");
        assert_eq!(victim.finish(), 0, "round {round}");
    }
    assert!(deaths > 0);
}

/// Usual ways to link an allocator into a program.
#[test]
fn a_linked_in_provider_is_seen() {
    for library in ["libjemalloc.a", "libtcmalloc_minimal.a"] {
        let path = PathBuf::from("/usr/lib/x86_64-linux-gnu").join(library);
        if !path.exists() {
            skip(&format!("{library} is not installed"));
            continue;
        }
        let path = path.to_str().expect("UTF-8");
        let flags = [
            "-O2",
            "-DLINKED",
            "-fno-builtin",
            "-Wl,--whole-archive",
            path,
            "-Wl,--no-whole-archive",
            "-lstdc++",
            "-lm",
        ];
        let mut victim = victim_built(&flags, "4");
        victim.steps("mcrts");
        let snapshot = victim.snapshot_path("a.snap.zst");
        let aggregator = victim.attach(&snapshot, &[]);
        victim.steps("mmcrtsf");
        let now = stats(victim.pid());
        assert_eq!((now.native().allocs, now.native().frees), (6, 6), "{library}");
        assert_eq!(now.snapshot.untracked_frees, 5, "{library}");
        victim.steps("be");
        let said = detach(aggregator);
        println!("{library}: {said}");
        report_on(&snapshot, &[]).assert_exact();
        assert_eq!(victim.finish(), 0, "{library}");
    }
}
