//! Loading and unloading of libraries: a block outlives the allocating library, and the block's
//! line must still be found.

use crate::support::trace::live_sizes;
use crate::support::victim::{self, line_of};
use crate::support::{Outcome, Trace};
use std::collections::BTreeSet;

/// Ways to find the object of an address: glibc's own, and the collector's table for an older
/// glibc.
const OBJECTS: [&str; 2] = ["", "table"];

fn run(objects: &str) -> Outcome {
    let flags = ["-O1", "-shared", "-fPIC"];
    let a = victim::build("plugin.c", &flags);
    let b = victim::build("plugin.c", &[flags.as_slice(), &["-DPLUGIN_B"]].concat());
    let trace = Trace::of(victim::build("dlopen.c", &["-O1"])).env("HEAPLINE_OBJECTS", objects);
    trace.arg(a).arg(b).run().expect_code(0)
}

#[test]
fn stacks_of_unloaded_libraries_keep_their_lines() {
    OBJECTS.iter().for_each(|objects| assert_lines_are_kept(&run(objects)));
}

fn assert_lines_are_kept(outcome: &Outcome) {
    assert_eq!(outcome.printed()["same_address"], 1, "each library takes the place of the one before");
    let report = outcome.report(&["--by", "lineno"]);
    report.assert_exact();
    let (a, b) = (line_of("plugin.c", "// LINE grab_a"), line_of("plugin.c", "// LINE grab_b"));
    assert_eq!(report.at_line("plugin.c", a), (2001 + 401 + 3001 + 401, 4));
    assert_eq!(report.at_line("plugin.c", b), (2000 + 400, 2), "and is not mixed up with it");
    let total = outcome.report(&["--by", "lineno", "--at", "total"]);
    assert_eq!(total.at_line("plugin.c", a).1, 2 * (1 + 1000 + 1));
    assert_eq!(total.at_line("plugin.c", b).1, 1 + 1000 + 1);
}

#[test]
fn two_libraries_at_one_address_are_two_modules() {
    OBJECTS.iter().for_each(|objects| assert_two_modules(&run(objects)));
}

fn assert_two_modules(outcome: &Outcome) {
    let snapshot = outcome.snapshot();
    let plugins: Vec<_> = snapshot.modules.iter().filter(|m| m.path.ends_with("/plugin")).collect();
    assert!(plugins.iter().all(|m| !m.loaded), "all were closed");
    let starts: BTreeSet<_> = plugins.iter().map(|m| m.start).collect();
    assert_eq!(starts.len(), 1, "one took the place of the other");
    let build_ids: BTreeSet<_> = plugins.iter().map(|m| &m.build_id).collect();
    assert_eq!(build_ids.len(), 2, "and yet they are two: {plugins:?}");
    assert_eq!(live_sizes(&snapshot).get(&401), Some(&2), "one of each load of the first");
}
