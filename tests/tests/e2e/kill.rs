//! `kill -9` at a random instant. The snapshot is a state of the process, not older than the last
//! published state.

use crate::history::assert_sums;
use crate::support::trace::{kill, live_sizes};
use crate::support::{Random, Trace, rounds, victim, wait_for};
use heapline_shared_format::snapshot::End;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const SLOTS: usize = 16;
const PROGRESS_BYTES: usize = 128;

/// The victim's random generator, as in `kill9.c`.
fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn size_at(thread: u64, i: u64) -> u64 {
    4096 + mix(i.wrapping_mul(8).wrapping_add(thread)) % 8192 * 8 + thread
}

/// Sizes of the blocks held by `thread` after `n` operations.
fn state_after(thread: u64, n: u64) -> BTreeMap<u64, u64> {
    let mut sizes = BTreeMap::new();
    for slot in 0..SLOTS as u64 {
        if let Some(size) = slot_after(thread, slot, n) {
            *sizes.entry(size).or_default() += 1;
        }
    }
    sizes
}

/// Block size in a slot after `n` operations. The last operation on the slot decides:
///
/// - The first operation of all fills the slot.
/// - A later operation with i % 3 == 0 finds a full slot, because the operation before had another
///   remainder, and empties the slot.
fn slot_after(thread: u64, slot: u64, n: u64) -> Option<u64> {
    let slots = SLOTS as u64;
    let last = n.checked_sub(slot + 1)? / slots * slots + slot;
    let emptied = last >= slots && last.is_multiple_of(3);
    (!emptied).then(|| size_at(thread, last))
}

/// Number of begun and of ended operations of each thread: (begun, ended).
fn read_progress(file: &Path, threads: u64) -> Vec<(u64, u64)> {
    let bytes = std::fs::read(file).expect("the progress file");
    let word = |at: &[u8]| u64::from_le_bytes(at[..8].try_into().expect("eight bytes"));
    let each = bytes.chunks_exact(PROGRESS_BYTES).map(|p| (word(p), word(&p[8..])));
    (0..threads).zip(each).map(|(_, p)| p).collect()
}

/// Runs and kills the victim once. Returns how many blocks were inside realloc at the kill.
pub fn one_kill(program: &Path, random: &mut Random) -> u64 {
    let threads = 4 + random.below(3);
    let trace = Trace::of(program);
    let progress = trace.directory().join("progress");
    let running = trace.arg(&progress).arg(threads.to_string()).spawn();
    wait_for("the victim's threads", || {
        let published = progress.exists() && std::fs::metadata(&progress).is_ok_and(|m| m.len() > 0);
        (published && read_progress(&progress, threads).iter().all(|&(_, ended)| ended > 0)).then_some(())
    });
    let target = running.target_pid();
    std::thread::sleep(Duration::from_micros(random.below(30_000)));
    kill(target, libc::SIGKILL);
    let outcome = running.finish().expect_code(128 + 9);
    let snapshot = outcome.snapshot();
    assert_eq!(snapshot.meta.end, End::Killed);
    // The history ends at the kill.
    assert_sums(&snapshot);
    assert_eq!(snapshot.meta.lost.values().sum::<u64>(), 0, "{:?}", snapshot.meta.lost);
    assert_eq!(snapshot.meta.contradictions.values().sum::<u64>(), 0, "{:?}", snapshot.meta.contradictions);

    let live = live_sizes(&snapshot);
    for (thread, (begun, ended)) in (0..).zip(read_progress(&progress, threads)) {
        let mine: BTreeMap<u64, u64> =
            live.iter().filter(|(size, _)| **size >= 4096 && **size % 8 == thread).map(|(s, n)| (*s, *n)).collect();
        let passed = (ended..=begun).any(|n| state_after(thread, n) == mine);
        assert!(
            passed,
            "thread {thread} ended {ended} of {begun} operations, whose states are {:?} and {:?}, not {mine:?}",
            state_after(thread, ended),
            state_after(thread, begun)
        );
    }
    snapshot.meta.in_realloc
}

#[test]
fn a_killed_process_leaves_a_state_that_it_passed_through() {
    let program = victim::build("kill9.c", &["-O2"]);
    let mut random = Random(0x6865_6170);
    let kills = rounds("HEAPLINE_KILLS", 100);
    let in_realloc: u64 = (0..kills).map(|_| one_kill(&program, &mut random)).sum();
    // Two of three operations reallocate, and spend most of the time in the copy.
    assert!(in_realloc > 0, "of {kills} kills some fall inside of realloc");
}

/// Compares the model of the victim with the victim's rule, applied step by step.
#[test]
fn the_model_of_the_victim_is_right() {
    let mut slots = [None; SLOTS];
    for (n, at) in (0..500_u64).zip((0..SLOTS).cycle()) {
        let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
        slots.iter().flatten().for_each(|size| *wanted.entry(*size).or_default() += 1);
        assert_eq!(state_after(3, n), wanted, "after {n} operations");
        let emptied = slots[at].is_some() && n.is_multiple_of(3);
        slots[at] = (!emptied).then(|| size_at(3, n));
    }
}
