//! Programs that restrict their own process: closed descriptors, jails, limits, locked memory.

use crate::support::trace::live_sizes;
use crate::support::{Outcome, Trace, is_root, victim};

/// Checks that nothing was lost and that the number of live blocks of `size` bytes is the victim's
/// number.
fn assert_left(outcome: &Outcome, size: u64) {
    outcome.report(&[]).assert_exact();
    assert_eq!(live_sizes(&outcome.snapshot()).get(&size), Some(&outcome.printed()["left"]));
}

#[test]
fn a_program_that_closes_all_descriptors_is_traced_to_its_end() {
    let outcome = Trace::of(victim::build("closeall.c", &["-O1"])).run().expect_code(0);
    assert_eq!(outcome.printed()["left"], 60_000);
    assert_left(&outcome, 21);
}

#[test]
fn a_program_that_goes_to_jail_as_nobody_is_traced_to_its_end() {
    if !is_root() {
        return;
    }
    let jail = tempfile::TempDir::new().expect("an empty folder");
    let outcome = Trace::of(victim::build("privileges.c", &["-O1"])).arg(jail.path()).run().expect_code(0);
    assert_eq!(outcome.printed()["left"], 60_000);
    assert_left(&outcome, 21);
}

fn limited(kind: &str) -> Outcome {
    Trace::of(victim::build("limits.c", &["-O1"])).arg(kind).run().expect_code(0)
}

#[test]
fn a_limit_on_the_address_space_is_met_as_without_us() {
    let outcome = limited("as");
    let left = outcome.printed()["left"];
    // 4 MiB hold about 37,000 blocks of 112 bytes. The collector takes far less than half of the
    // space.
    assert!((20_000..100_000).contains(&left), "{left} blocks before the limit");
    assert_left(&outcome, 91);
}

#[test]
fn limits_on_descriptors_and_file_sizes_do_not_matter() {
    for kind in ["nofile", "fsize"] {
        let outcome = limited(kind);
        assert_eq!(outcome.printed()["left"], 100_000, "{kind}");
        assert_left(&outcome, 91);
    }
}

#[test]
fn a_file_size_limit_of_nothing_before_the_start_is_survived() {
    let program = victim::build("limits.c", &["-O1"]);
    let command = format!("ulimit -f 0; exec {} none", program.display());
    let outcome = Trace::of("/bin/sh").args(["-c", &command]).run().expect_code(0);
    assert_left(&outcome, 91);
}

#[test]
fn the_arena_is_not_locked_with_the_programs_memory() {
    let program = victim::build("limits.c", &["-O1"]);
    let trace = Trace::of(&program).arg("lock");
    let alone = crate::support::trace::printed(&trace.untraced().stdout)["locked_kib"];
    let outcome = trace.run().expect_code(0);
    let locked = outcome.printed()["locked_kib"];
    assert!(locked < alone + 16 * 1024, "{locked} KiB are locked, {alone} without tracing; the arena has 65,536");
    assert_left(&outcome, 91);
}
