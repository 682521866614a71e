//! Memory over time: the history in a snapshot, and what report tells about an instant and a range.

use crate::support::trace::{ctl, ctl_ok, read_snapshot, report_on};
use crate::support::victim::{self, line_of};
use crate::support::{Running, Trace, has, programs, stdout_of};
use heapline_shared_format::snapshot::history::{Held, USER_MARK};
use heapline_shared_format::snapshot::{Domain, History, Snapshot};
use heapline_shared_format::text::size;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::Command;

pub fn history(snapshot: &Snapshot) -> &History {
    snapshot.history.as_ref().expect("a history")
}

/// Checks that at the end of each step the sum over all stacks is the domain's memory, and that the
/// last step is the snapshot, for each stack with rows of its own.
pub fn assert_sums(snapshot: &Snapshot) {
    let history = history(snapshot);
    let mut held: BTreeMap<(Domain, Option<u32>), Held> = BTreeMap::new();
    for step in &history.steps {
        step.changes.iter().for_each(|change| held.entry(change.key()).or_default().add(&change));
        for row in &step.domains {
            let all = held.iter().filter(|((domain, _), _)| *domain == row.domain);
            let all = all.fold((0_u64, 0_u64), |(size, count), (_, held)| {
                (size.wrapping_add(held.size), count.wrapping_add(held.count))
            });
            assert_eq!(all, (row.current, row.blocks), "{} at {}", row.domain, step.end);
            assert!(row.greatest >= row.current, "{row:?}");
        }
    }
    let last = history.steps.last().expect("a step");
    for row in &snapshot.domains {
        let of_step = last.domain(row.domain).map_or((0, 0), |row| (row.current, row.blocks));
        assert_eq!(of_step, (row.current, row.blocks), "{} at the end", row.domain);
    }
    let mut live: BTreeMap<(Domain, u32), (u64, u64)> = BTreeMap::new();
    for row in &snapshot.live {
        let sum = live.entry((row.domain, row.stack)).or_default();
        *sum = (sum.0 + row.size * row.count, sum.1 + row.count);
    }
    for (&(domain, stack), held) in held.iter().filter(|((_, stack), _)| stack.is_some()) {
        let live = live.get(&(domain, stack.unwrap_or(0))).copied().unwrap_or_default();
        assert_eq!((held.size, held.count), live, "stack {stack:?} of {domain}");
    }
}

/// Greatest memory and number of allocations in all steps.
fn native(history: &History) -> (u64, u64, u64) {
    let rows = history.steps.iter().filter_map(|step| step.domain(Domain::Native));
    rows.fold((0, 0, 0), |(greatest, allocs, frees), row| {
        (row.greatest.max(greatest), allocs + row.allocs, frees + row.frees)
    })
}

#[test]
fn every_step_of_a_run_has_its_sums_and_no_peak_is_missed() {
    let victim = victim::build("swing.c", &["-O1"]);
    let outcome = Trace::of(victim).arg("150").arg("peak").run().expect_code(0);
    let snapshot = outcome.snapshot();
    assert_sums(&snapshot);
    let (steps, sums) = (&history(&snapshot).steps, snapshot.domains[0]);
    assert!(steps.len() > 10, "{} steps", steps.len());
    assert_eq!(native(history(&snapshot)), (sums.peak, sums.allocs, sums.frees));
    // The block of the peak was freed at once, between two watermarks or not.
    assert!(sums.peak > 90_000_000);
    let process = steps.iter().filter_map(|step| step.process).next_back().expect("figures of the process");
    assert!(process.resident > 100_000 && process.threads == 1 && process.minor_faults > 0, "{process:?}");
    assert!(process.own_target > 0 && process.own_resident > 0 && process.own_cpu > 0, "{process:?}");
}

#[test]
fn a_leak_under_a_swinging_load_has_grown_by_what_it_leaked() {
    let victim = victim::build("swing.c", &["-O1", "-g"]);
    let outcome = Trace::of(victim).arg("200").run().expect_code(0);
    let report = outcome.report(&["--since", "+500ms", "--by", "lineno"]);
    let leak = line_of("swing.c", "// LINE leak");
    let row = report.stats.iter().find(|row| row.most_recent().lineno == leak).expect("the leak");
    let count = row.count_diff.expect("a difference");
    assert_eq!((row.change.as_deref(), row.size_diff), (Some("grown"), Some(1000 * count)));
    assert_eq!((row.size, row.count), (200_000, 200));
    assert!((1..200).contains(&count), "{count}");
    let at = outcome.report(&["--at", "+500ms", "--by", "lineno"]);
    assert_eq!(
        at.at_line("swing.c", leak),
        (row.size - 1000 * u64::try_from(count).expect("more"), 200 - count as u64)
    );
}

#[test]
fn a_leak_is_named_from_one_snapshot() {
    let victim = victim::build("swing.c", &["-O1", "-g"]);
    let outcome = Trace::of(victim).arg("300").run().expect_code(0);
    let report = outcome.report(&["--leaks", "--by", "lineno"]);
    let leak = line_of("swing.c", "// LINE leak");
    let row = report.stats.iter().find(|row| row.most_recent().lineno == leak).expect("the leak grows");
    let growth = row.growth.as_ref().expect("a growth");
    // 1000 bytes in each turn of 10 ms and more.
    assert!(growth.bytes_per_hour > 0.0 && growth.bytes_per_hour < 360_000_000.0 * 1.1, "{growth:?}");
    assert!(growth.certainty > 0.99, "{growth:?}");
    assert!(growth.series.is_sorted() && growth.series.last() == Some(&300_000), "{growth:?}");
    // Half of the leak came in the first half of the run.
    let old = row.survived.as_ref().expect("births are known");
    assert!((60..=240).contains(&old.count) && old.size == 1000 * old.count, "{old:?}");
}

/// The peak of 200 ms is on the screen with its time, and in massif's viewer with its bytes.
#[test]
fn a_peak_that_is_gone_is_seen_at_first_sight() {
    let victim = victim::build("swing.c", &["-O1", "-g"]);
    let outcome = Trace::of(victim).arg("150").arg("peak").run().expect_code(0);
    let path = outcome.snapshot_path();
    let sums = outcome.snapshot().domains[0];
    let report = |options: &[&str]| stdout_of(Command::new(&programs().report).arg(&path).args(options));
    let shown = report(&[]);
    assert!(shown.contains(&format!("\nnative memory: peak {} at ", size(sums.peak))), "{shown}");
    assert!(shown.contains(&format!("\n               left {} in ", size(sums.current))), "{shown}");
    let line = line_of("swing.c", "// LINE peak");
    assert!(shown.contains(&format!("swing.c:{line} ")), "{shown}");
    assert!(shown.lines().count() <= 23 && shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    if !has("ms_print") {
        return;
    }
    let file = path.with_file_name("massif.out");
    report(&["--format", "massif", "-o", file.to_str().expect("UTF-8")]);
    let printed = stdout_of(Command::new("ms_print").arg(&file));
    let totals = printed.lines().filter(|line| line.contains("100.00% (") && line.ends_with(" (native memory)"));
    let digits = |line: &str| line.split('(').nth(1).expect("bytes").chars().filter(char::is_ascii_digit).collect();
    let totals: Vec<String> = totals.map(digits).collect();
    assert_eq!(totals, [sums.peak.to_string(), sums.current.to_string()], "{printed}");
}

/// A victim that takes a step per byte of input and answers when ready for the next step.
pub fn step(victim: &mut Running, is_first: bool) {
    if !is_first {
        victim.child.stdin.as_mut().expect("piped").write_all(b".").expect("the victim listens");
    }
    victim.child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("the victim answers");
}

#[test]
fn the_memory_at_a_mark_is_known() {
    let mut victim = Trace::of(victim::build("story.c", &["-O0", "-g"])).spawn();
    step(&mut victim, true);
    let pid = victim.target_pid();
    ctl_ok(pid, &["mark", "before"]);
    step(&mut victim, false);
    ctl_ok(pid, &["mark", "deploy 42"]);
    step(&mut victim, false);
    ctl_ok(pid, &["reset-peak"]);
    let now = victim.snapshot_path().with_file_name("now.snap.zst");
    ctl_ok(pid, &["snapshot", "-o", now.to_str().expect("UTF-8")]);
    let empty = ctl(pid, &["mark", " "]);
    assert!(!empty.status.success() && String::from_utf8_lossy(&empty.stderr).contains("a mark needs a text"));
    victim.child.stdin.take();
    let outcome = victim.finish();

    let line = |marker: &str| line_of("story.c", &format!("// LINE {marker}"));
    for path in [now, outcome.snapshot_path()] {
        assert_sums(&read_snapshot(&path));
        let before = report_on(&path, &["--at", "mark:before"]);
        assert_eq!((before.total.size, before.total.count, before.at.as_str()), (1000, 1, "instant"));
        let deploy = report_on(&path, &["--at", "mark:deploy"]);
        assert_eq!(deploy.at_line("story.c", line("big")), (50_000_000, 1));
        assert_eq!(deploy.total.size, 50_001_000);
        let since = report_on(&path, &["--since", "mark:before", "--until", "mark:deploy"]);
        assert_eq!((since.stats[0].change.as_deref(), since.stats[0].size_diff), (Some("new"), Some(50_000_000)));
        let (from, to) = (since.since.expect("an instant"), since.instant.expect("an instant"));
        assert!(from.time != to.time && from.step_begin != from.time && to.step_milliseconds > 0, "{from:?} {to:?}");
    }
    let snapshot = outcome.snapshot();
    let kinds: Vec<&str> = history(&snapshot).marks.iter().map(|mark| mark.kind.as_str()).collect();
    assert_eq!(kinds, ["start", USER_MARK, USER_MARK, "reset-peak", "snapshot"]);
}

#[test]
fn forgotten_traces_are_forgotten_in_the_history_from_then_on() {
    let mut victim = Trace::of(victim::build("story.c", &["-O0", "-g"])).spawn();
    step(&mut victim, true);
    let pid = victim.target_pid();
    step(&mut victim, false);
    ctl_ok(pid, &["mark", "full"]);
    ctl_ok(pid, &["clear-traces"]);
    step(&mut victim, false);
    step(&mut victim, false);
    victim.child.stdin.take();
    let outcome = victim.finish();
    assert_sums(&outcome.snapshot());
    assert_eq!(outcome.report(&["--at", "mark:full"]).total.size, 50_001_000);
    assert_eq!(outcome.report(&["--at", "-0s"]).total.size, 30_000);
    assert!(history(&outcome.snapshot()).marks.iter().any(|mark| mark.kind == "clear-traces"));
}

#[test]
fn without_a_history_nothing_of_it_is_in_the_snapshot() {
    let mut victim = Trace::of(victim::build("story.c", &["-O0"])).option("--no-history").spawn();
    step(&mut victim, true);
    let refused = ctl(victim.target_pid(), &["mark", "deploy"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("trace without --no-history"));
    victim.child.stdin.take();
    assert_eq!(victim.finish().snapshot().history, None);
}

#[test]
fn samples_have_a_history_of_estimates() {
    let victim = victim::build("swing.c", &["-O1", "-g"]);
    let outcome = Trace::of(victim).option("--sample").option("64K").arg("100").run().expect_code(0);
    let snapshot = outcome.snapshot();
    let history = history(&snapshot);
    for (index, step) in history.steps.iter().enumerate().step_by(7) {
        let Some(row) = step.domain(Domain::Native) else { continue };
        let held = history.held_at(index);
        let all = held.iter().filter(|((domain, _), _)| *domain == Domain::Native);
        assert_eq!(all.map(|(_, held)| held.size).sum::<u64>(), row.current);
    }
    let last = history.steps.last().expect("a step");
    assert_eq!(last.domain(Domain::Native).map(|row| row.current), Some(snapshot.domains[0].current));
}

#[test]
fn a_small_bound_takes_steps_and_leaves_the_sums() {
    let victim = victim::build("swing.c", &["-O1"]);
    let outcome = Trace::of(victim).option("--history-memory").option("20K").arg("200").run().expect_code(0);
    let snapshot = outcome.snapshot();
    assert_sums(&snapshot);
    assert!(history(&snapshot).steps.len() < 60, "{} steps", history(&snapshot).steps.len());
    assert_eq!(native(history(&snapshot)).0, snapshot.domains[0].peak, "the greatest figures are kept");
}
