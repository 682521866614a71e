//! An allocator inside of the library that calls it: its blocks are recorded where the library names its functions, and else the
//! allocator is named as not seen.

use crate::support::{Outcome, Trace, victim};
use std::path::PathBuf;

const CHURNED: u64 = 4500;

fn library(flags: &[&str]) -> PathBuf {
    victim::build("inner.c", &[&["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-DLIBRARY"], flags].concat())
}

fn opens(library: &PathBuf) -> Outcome {
    Trace::of(victim::build("inner.c", &["-O1"])).arg(library).run().expect_code(0)
}

fn unseen(outcome: &Outcome) -> Vec<String> {
    outcome.snapshot().meta.unseen.into_iter().map(|cause| cause.name).collect()
}

fn at(outcome: &Outcome, options: &[&str], marker: &str) -> (u64, u64) {
    outcome.report(options).at_line("inner.c", victim::line_of("inner.c", marker))
}

/// What one piece of work leaves, after so many of them.
fn assert_work(outcome: &Outcome, works: u64) {
    assert_eq!(at(outcome, &[], "/* kept */"), (3000, 3));
    assert_eq!(at(outcome, &[], "/* moved */"), (5000, 1));
    assert_eq!(at(outcome, &[], "/* aligned */"), (300, 1));
    assert_eq!(at(outcome, &[], "/* churn */"), (0, 0));
    let ever = ["--at", "total"];
    assert_eq!(at(outcome, &ever, "/* zeroed */"), (500 * works, works));
    assert_eq!(at(outcome, &ever, "/* kept */"), (3000 * works, 3 * works));
}

#[test]
fn an_allocator_in_a_library_that_is_opened_closed_and_opened_again_is_exact() {
    for flags in [&[][..], &["-O1"], &["-fcf-protection=full"], &["-fno-plt", "-march=x86-64-v3"]] {
        let outcome = opens(&library(flags));
        assert_eq!(unseen(&outcome), [""; 0], "{flags:?}");
        assert_work(&outcome, 21);
        assert_eq!(at(&outcome, &["--at", "total"], "/* churn */").1, 21 * CHURNED, "{flags:?}");
        outcome.report(&[]).assert_exact();
        assert_eq!(outcome.report(&[]).snapshot.untracked_frees, 0, "{flags:?}");
    }
}

#[test]
fn an_allocator_in_a_library_that_the_program_is_linked_with_is_exact() {
    let library = library(&[]);
    let program = victim::build("inner.c", &["-O1", "-DLINKED", library.to_str().expect("UTF-8")]);
    let outcome = Trace::of(program).run().expect_code(0);
    assert_eq!(unseen(&outcome), [""; 0]);
    assert_work(&outcome, 1);
    outcome.report(&[]).assert_exact();
}

#[test]
fn an_allocator_in_a_stripped_library_is_named() {
    let outcome = opens(&library(&["-s"]));
    assert_eq!(unseen(&outcome), ["jemalloc"]);
    assert_eq!(at(&outcome, &["--at", "total"], "/* kept */"), (0, 0));
}

/// A thread of a constructor's may be anywhere in the allocator, unless it has not been started yet.
#[test]
fn a_library_whose_constructor_starts_a_thread_is_led_before_that_or_never() {
    let heard = opens(&library(&["-DHEARD"]));
    assert_work(&heard, 21);
    assert_eq!(at(&heard, &["--at", "total"], "/* churn */").1, 21 * (CHURNED + 1000));
    assert_eq!(unseen(&heard), ["constructors of such libraries"]);
    // Whether the thread is over when `dlopen` returns is a race, so nothing is said of the counts.
    let unheard = opens(&library(&["-DUNHEARD"]));
    assert!(!unseen(&unheard).is_empty());
}
