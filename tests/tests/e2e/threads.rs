//! Threads that exchange blocks. The tests cover the order of events on an address across threads,
//! many threads over time, and many threads at once.

use crate::support::trace::{live_sizes, read_snapshot};
use crate::support::{Outcome, Trace, rounds, victim};
use heapline_shared_format::snapshot::{Domain, Snapshot};

const SIZES: [u64; 4] = [17, 33, 49, 65];

/// Checks that live blocks and blocks ever made agree with the victim's numbers.
pub fn assert_exact(outcome: &Outcome, what: &str) {
    let report = outcome.report(&["--by", "size"]);
    report.assert_exact();
    let said = outcome.printed();
    let live = live_sizes(&outcome.snapshot());
    for size in SIZES {
        let left = said[&format!("left_{size}")];
        assert_eq!(live.get(&size).copied().unwrap_or(0), left, "{what}: live blocks of {size} bytes");
    }
    let made: u64 = SIZES.iter().map(|size| said[&format!("made_{size}")]).sum();
    let total = outcome.report(&["--at", "total", "--by", "function", "--filter", "*/threads.c"]);
    assert_eq!(total.total.count, made, "{what}: blocks ever made");
}

#[test]
fn blocks_handed_between_threads_are_never_mixed_up() {
    let seeds = rounds("HEAPLINE_SEEDS", 100);
    let program = victim::build("threads.c", &["-O2"]);
    // A few processes, each with a different number of threads: a fresh arena now and then, yet
    // little time for starting.
    for (part, threads) in [2, 4, 8, 3].into_iter().enumerate() {
        let each = seeds.div_ceil(4);
        let first = part as u64 * each;
        let numbers = [threads, 20_000, first, each].map(|n: u64| n.to_string());
        let outcome = Trace::of(&program).args(&numbers).run().expect_code(0);
        assert_exact(&outcome, &format!("{threads} threads, seeds from {first}"));
    }
}

/// The scheduler always leaves some threads behind. The other threads must not write more records
/// than can wait for the slow threads.
#[test]
fn more_threads_than_cores_that_do_nothing_but_allocate_wait_for_each_other() {
    let (threads, ops) = (64, 600_000);
    let program = victim::build("crowd.c", &["-O2"]);
    let outcome = Trace::of(&program).args([threads, ops].map(|n: u64| n.to_string())).run().expect_code(0);
    let report = outcome.report(&["--at", "total", "--filter", "*/crowd.c"]);
    report.assert_exact();
    assert_eq!(report.total.count, threads * ops);
}

#[test]
fn resolvers_on_other_cores_find_the_same() {
    let program = victim::build("threads.c", &["-O2"]);
    let trace = Trace::of(&program).args(["3", "200000", "5", "4"]).env("HEAPLINE_RESOLVERS", "3");
    assert_exact(&trace.run().expect_code(0), "three resolvers");
}

/// The free's stamp must be taken after the load that received the block, as described in
/// `handover.c`.
#[test]
fn a_block_freed_the_instant_it_is_handed_over_was_allocated_before() {
    let handed_over = 2_000_000;
    let program = victim::build("handover.c", &["-O2"]);
    let outcome = Trace::of(&program).arg(handed_over.to_string()).run().expect_code(0);
    let report = outcome.report(&["--at", "total", "--filter", "*/handover.c"]);
    report.assert_exact();
    assert_eq!((report.total.count, report.total.size), (handed_over, handed_over * 49));
    assert_eq!(live_sizes(&outcome.snapshot()).get(&49), None);
}

/// A thread alone with its events does not read the clock. The first event of another thread must
/// end this state, as described in `turns.c`.
#[test]
fn threads_by_turns_alone_and_together_are_never_mixed_up() {
    let turns = rounds("HEAPLINE_SEEDS", 100);
    let outcome = Trace::of(victim::build("turns.c", &["-O2"])).arg(turns.to_string()).run().expect_code(0);
    let report = outcome.report(&["--at", "total", "--filter", "*/turns.c"]);
    report.assert_exact();
    let said = outcome.printed();
    assert_eq!(report.total.count, said["made"]);
    assert_eq!(live_sizes(&outcome.snapshot()).get(&49).copied().unwrap_or(0), said["left"]);
}

#[test]
fn a_tiny_pool_makes_threads_wait_and_loses_nothing() {
    let program = victim::build("threads.c", &["-O2"]);
    let trace = Trace::of(&program).args(["4", "100000", "7", "2"]).option("--max-target-memory").option("1");
    let outcome = trace.run().expect_code(0);
    assert_exact(&outcome, "the smallest pool");
    let report = outcome.report(&[]);
    assert!(report.own.target_bytes < 8 << 20, "{} bytes in the target", report.own.target_bytes);
}

/// Checks that the sums of the threads are the sums of the domain. Threads whose rows were given to
/// other threads have one row, and there are at most as many rows as slots for threads.
fn assert_sums(outcome: &Outcome) {
    let snapshot = outcome.snapshot();
    let native = &snapshot.domains[0];
    let rows = snapshot.thread_totals.iter().filter(|row| row.domain == native.domain);
    let sums = rows.clone().fold([0; 3], |[peak, count, size], row| {
        [peak + row.peak_size, count + row.total_count, size + row.total_size]
    });
    assert_eq!(sums, [native.peak, native.allocs, native.allocated_bytes]);
    let ended: Vec<_> = snapshot.threads.iter().filter(|thread| thread.tid == 0).collect();
    assert!(ended.iter().all(|ended| (ended.name.as_str(), ended.alive) == ("manythreads", false)), "{ended:?}");
    assert!(ended.len() <= 1 && snapshot.threads.len() <= 4097, "{} rows", snapshot.threads.len());
}

/// Bytes of the pool: so small that a few thousand threads have used all segments.
const POOL: u64 = 4 << 20;

#[test]
fn twenty_thousand_short_threads_take_no_more_memory_than_two_thousand() {
    let program = victim::build("manythreads.c", &["-O1"]);
    let run = |threads: u64| {
        let trace = Trace::of(&program).arg("churn").arg(threads.to_string());
        let outcome = trace.option("--max-target-memory").option(POOL.to_string()).run().expect_code(0);
        let report = outcome.report(&["--at", "total", "--filter", "*/manythreads.c"]);
        report.assert_exact();
        assert_eq!(report.total.count, threads * 11, "blocks that the threads made");
        assert_eq!(report.total.size, threads * (61 + 10 * 83));
        assert_sums(&outcome);
        report.own
    };
    let (few, many) = (run(2_000), run(20_000));
    let slack = 2 << 20;
    assert!(many.target_bytes <= few.target_bytes + slack, "{few:?} {many:?}");
    assert!(many.aggregator_bytes <= few.aggregator_bytes + slack, "{few:?} {many:?}");
}

#[test]
fn two_thousand_threads_at_once_are_all_traced() {
    let program = victim::build("manythreads.c", &["-O1"]);
    let outcome = Trace::of(&program).args(["crowd", "2000"]).run().expect_code(0);
    outcome.report(&[]).assert_exact();
    assert_eq!(live_sizes(&outcome.snapshot()).get(&61), Some(&2000));
    let threads = outcome.report(&["--by", "thread", "--filter", "*/manythreads.c"]);
    // All have ended, and have the program's name.
    assert_eq!((threads.total.groups, threads.total.count), (1, 2000), "one block of each thread");
    assert_eq!(threads.stats[0].key, "manythreads (ended)");
}

/// A thread that is named after its first allocation, and ends at once, has its last name.
#[test]
fn a_thread_has_the_name_that_it_ended_with() {
    let outcome = Trace::of(victim::build("renamed.c", &["-O1"])).run().expect_code(0);
    let names = |snapshot: &Snapshot, size: u64| -> Vec<String> {
        let groups = snapshot.live.iter().filter(|group| group.size == size && group.domain == Domain::Native);
        groups.map(|group| snapshot.threads[group.thread as usize].name.clone()).collect()
    };
    let snapshot = outcome.snapshot();
    for (size, name) in [(6001, "by-itself"), (6002, "by-prctl"), (6003, "by-creator")] {
        assert_eq!(names(&snapshot, size), [name]);
    }
    let children = std::fs::read_dir(outcome.snapshot_path().with_file_name("out")).expect("the child's folder");
    let children: Vec<_> = children.map(|child| read_snapshot(&child.expect("a file").path())).collect();
    let [child] = &children[..] else { panic!("{} children", children.len()) };
    let mut found = names(child, 6001);
    found.sort_unstable();
    assert_eq!(found, ["by-itself", "in-child"]);
}

/// The collector has a key for values of threads, and gives the key up where all are needed.
#[test]
fn a_program_gets_every_key() {
    let trace = Trace::of(victim::build("keys.c", &["-O1"]));
    let alone = String::from_utf8(trace.untraced().stdout).expect("UTF-8");
    assert!(alone.contains(" keys"), "{alone}");
    let outcome = trace.run().expect_code(0);
    assert_eq!(String::from_utf8_lossy(&outcome.output.stdout), alone);
    outcome.report(&[]).assert_exact();
    assert_eq!(live_sizes(&outcome.snapshot()).get(&700), Some(&8));
}
