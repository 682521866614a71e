//! Copies of a busy program at one instant: snapshots and forked children. The copies are made
//! while the program goes on, and show nothing of what came later.

use crate::support::trace::{ctl_ok, live_sizes, read_snapshot};
use crate::support::{Trace, victim, wait_for};
use heapline_shared_format::snapshot::{Birth, Snapshot};

const BLOCKS: u64 = 300_000;
const CHILDREN: u64 = 4;

fn busy(children: u64) -> Trace {
    let program = victim::build("instants.c", &["-O2"]);
    Trace::of(program).args([BLOCKS, children].map(|n| n.to_string()))
}

/// Checks that blocks, stacks and domain agree, and that at most one block is being replaced.
fn assert_one_instant(snapshot: &Snapshot) {
    let native = &snapshot.domains[0];
    assert!(snapshot.meta.lost.is_empty() && snapshot.meta.contradictions.is_empty(), "{:?}", snapshot.meta);
    let live = snapshot.live.iter().filter(|group| group.domain == native.domain);
    let sums = live.fold((0, 0), |(bytes, blocks), group| (bytes + group.size * group.count, blocks + group.count));
    assert_eq!(sums, (native.current, native.blocks));
    let stacks = snapshot.totals.iter().filter(|row| row.domain == native.domain);
    let sums = stacks.fold((0, 0, 0), |(peak, bytes, count), row| {
        (peak + row.peak_size, bytes + row.total_size, count + row.total_count)
    });
    let inherited = snapshot.origin.as_ref().map_or(0, |origin| origin.inherited.as_ref().expect("known")["native"]);
    assert_eq!((sums.0, sums.1, sums.2), (native.peak, native.allocated_bytes, native.allocs));
    assert_eq!(native.allocs - native.frees + inherited, native.blocks);
    let blocks = live_sizes(snapshot)[&33];
    assert!((BLOCKS - 1..=BLOCKS).contains(&blocks), "{blocks} blocks of {BLOCKS}");
}

#[test]
fn a_snapshot_of_a_busy_program_is_of_one_instant() {
    let running = busy(0).spawn();
    let pid = running.target_pid();
    let path = running.snapshot_path().with_file_name("one.snap.zst");
    let path = path.to_str().expect("UTF-8");
    let snapshot = || {
        ctl_ok(pid, &["snapshot", "-o", path]);
        read_snapshot(path.as_ref())
    };
    let mut frees =
        wait_for("the first replaced block", || Some(snapshot().domains[0].frees).filter(|&frees| frees > 0));
    for _ in 0..10 {
        // On a busy machine the program may stand still from one snapshot to the next.
        frees = wait_for("the next replaced block", || {
            let snapshot = snapshot();
            assert_one_instant(&snapshot);
            Some(snapshot.domains[0].frees).filter(|&now| now > frees)
        });
    }
    // The end of standard input ends the program.
    assert_one_instant(&running.finish().expect_code(0).snapshot());
}

#[test]
fn a_child_of_a_busy_program_begins_with_the_instant_of_its_fork() {
    let running = busy(CHILDREN).option("--follow").spawn();
    running.target_pid();
    let outcome = running.finish().expect_code(0);
    let files = std::fs::read_dir(outcome.directory().join("out")).expect("the children's snapshots");
    let children: Vec<_> = files.map(|file| read_snapshot(&file.expect("a file").path())).collect();
    assert_eq!(children.len() as u64, CHILDREN, "{}", outcome.stderr());
    for child in &children {
        assert_one_instant(child);
        assert_eq!(child.origin.as_ref().map(|origin| origin.birth), Some(Birth::Fork));
        // The only thread has forked between two blocks.
        let live = live_sizes(child);
        assert_eq!((live[&33], live[&49]), (BLOCKS, 10));
    }
}
