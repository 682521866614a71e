//! Children of all kinds run unharmed and untraced, and do not change the parent's numbers.

use crate::support::trace::live_sizes;
use crate::support::{Trace, victim};
use std::path::Path;

/// Checks the parent's totals under `mode`. The victim itself checks that no child was harmed.
fn assert_parent_is_exact(mode: &str) {
    assert_exact_in(&victim::build("fork.c", &["-O1"]), mode);
}

/// Checks the parent's totals of a build of `fork.c`.
pub fn assert_exact_in(program: &Path, mode: &str) {
    let outcome = Trace::of(program).arg(mode).run().expect_code(0);
    let said = outcome.printed();
    let report = outcome.report(&["--at", "total", "--filter", "*/fork.c"]);
    report.assert_exact();
    assert_eq!(report.total.count, said["allocs"] + said["worker"], "{mode}: what the parent allocated");
    let live = live_sizes(&outcome.snapshot());
    assert_eq!(live.get(&1000), Some(&said["left"]), "{mode}: what the children freed is still the parent's");
    assert_eq!(live.get(&2000), None, "{mode}");
    for of_children in [50, 333, 5000] {
        assert_eq!(live.get(&of_children), None, "{mode}: blocks of {of_children} bytes are the children's");
    }
}

#[test]
fn a_forked_child_is_unharmed_and_not_counted() {
    assert_parent_is_exact("fork");
}

#[test]
fn a_fork_while_another_thread_allocates_is_unharmed() {
    assert_parent_is_exact("thread");
}

#[test]
fn a_vfork_child_is_unharmed() {
    assert_parent_is_exact("vfork");
}

#[test]
fn a_spawned_child_is_unharmed() {
    assert_parent_is_exact("spawn");
}

#[test]
fn a_raw_clone_is_unharmed_and_not_counted() {
    assert_parent_is_exact("clone");
}
