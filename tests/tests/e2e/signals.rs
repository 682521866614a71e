//! Signal handlers that allocate, at such a rate that every instruction of the hooks is interrupted
//! sooner or later.
//!
//! glibc's malloc must not be called from a handler that interrupted malloc. The victim uses an
//! allocator without this restriction, because the hooks are under test.

use crate::support::trace::live_sizes;
use crate::support::{Outcome, Trace, victim};

/// Runs `signals.c` with the allocator `bump.c`, preloaded by the user's own LD_PRELOAD.
fn run(mode: &str) -> Outcome {
    let provider = victim::build("bump.c", &["-O2", "-shared", "-fPIC"]);
    let program = victim::build("signals.c", &["-O1"]);
    Trace::of(&program).args([mode, "1500"]).env("LD_PRELOAD", provider).run().expect_code(0)
}

/// Checks that every event was recorded or counted as lost, and that the numbers are otherwise
/// exact.
fn assert_complete(mode: &str) {
    let outcome = run(mode);
    let said = outcome.printed();
    assert!(said["handler_allocs"] > 1000, "the timer ticks");
    let report = outcome.report(&[]);
    assert_eq!(report.snapshot.contradictions, 0);
    let lost: u64 = report.snapshot.lost.values().sum();
    let made = said["ended"] + said["handler_allocs"] + said["handler_frees"] + 2 * 1000;
    let native = report.native();
    assert_eq!(native.allocs + native.frees + lost, made, "{mode}: {:?}", report.snapshot.lost);
    assert!(report.snapshot.lost.keys().all(|cause| cause == "reentrant"), "{mode}: {:?}", report.snapshot.lost);
    // While a handler interrupts a hook, the handler's records go to a side ring. Few records are
    // lost: records of a handler that interrupts a handler while the side ring is being taken.
    assert!(lost * 20 < said["handler_allocs"] + said["handler_frees"], "{mode}: {lost} events are lost");
    assert!(native.blocks <= lost, "{mode}: all was freed, {} blocks are left", native.blocks);
}

#[test]
fn a_handler_that_interrupts_a_hook_is_recorded() {
    assert_complete("handler");
}

#[test]
fn a_handler_on_its_own_stack_is_recorded() {
    assert_complete("altstack");
}

#[test]
fn a_handler_that_jumps_out_of_a_hook_leaves_it_usable() {
    let outcome = run("jump");
    let said = outcome.printed();
    assert!(said["jumps"] > 500, "{} jumps", said["jumps"]);
    let report = outcome.report(&[]);
    let native = report.native();
    let lost: u64 = report.snapshot.lost.values().sum();
    let recorded = native.allocs + native.frees + lost;
    let outside = said["handler_allocs"] + said["handler_frees"] + 2 * 1000;
    let (least, most) = (said["ended"] + outside, said["begun"] + outside);
    assert!((least..=most).contains(&recorded), "{recorded} events, not {least} to {most}");
    // An operation cut off by a jump may have happened (a block that nobody received) or not.
    assert!(native.blocks <= said["begun"] - said["ended"], "{} blocks are left", native.blocks);
}

/// Handlers on an alternate stack, coroutines and threads with hardly any stack left run as without
/// tracing. Their allocations have tracebacks.
#[test]
fn stacks_without_room_for_a_walk_are_left_alone() {
    let program = victim::build("narrow.c", &["-O1"]);
    for (way, events) in [
        ("alternate", 100),
        ("within", 100),
        ("coroutine", 200),
        ("threads", 100),
        ("first", 1),
        ("nested", 1),
        ("interrupted", 1),
    ] {
        let outcome = Trace::of(&program).arg(way).run().expect_code(0);
        assert_eq!(outcome.stdout(), format!("works {events}\n"), "{way}");
        let report = outcome.report(&[]);
        let line = victim::line_of("narrow.c", "/* work */");
        assert_eq!(report.at_line("narrow.c", line), (5000 * events, events), "{way}");
        report.assert_exact();
        // With an interval of 1 byte each block is a sample.
        let sampled = Trace::of(&program).arg(way).option("--sample").option("1").run().expect_code(0);
        assert_eq!(sampled.stdout(), outcome.stdout(), "{way}: sampled");
        assert_eq!(live_sizes(&sampled.snapshot())[&5000], events, "{way}: sampled");
    }
}
