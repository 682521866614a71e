//! Ages of live blocks, lifetimes of ended ones, and what a range of time has left.

use crate::history::{assert_sums, history};
use crate::providers::installed;
use crate::support::report::{Report, Stat};
use crate::support::trace::{ctl_ok, printed, read_snapshot, report_on};
use crate::support::victim::{self, line_of};
use crate::support::{Outcome, Running, Trace};
use heapline_shared_format::snapshot::history::USER_MARK;
use heapline_shared_format::snapshot::{Domain, Snapshot};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Command;

/// Checks that the ages are those of all live blocks, and the lifetimes those of all ended ones.
fn assert_ages(snapshot: &Snapshot) {
    assert_sums(snapshot);
    let ages = snapshot.ages.as_ref().expect("ages");
    let mut left: Vec<u64> = snapshot.live.iter().map(|row| row.count).collect();
    ages.blocks.iter().for_each(|born| left[born.live as usize] -= born.count);
    assert!(left.iter().all(|&left| left == 0), "each live block has an age");
    for row in snapshot.domains.iter().filter(|row| !row.domain.is_of_ranges()) {
        let lifetimes = snapshot.lifetimes.iter().filter(|lifetimes| lifetimes.domain == row.domain);
        let ended: u64 = lifetimes.map(|row| row.within_step + row.ended.iter().sum::<u64>()).sum();
        assert_eq!(ended, row.frees, "{}: each ended block has a lifetime", row.domain);
    }
}

/// The victim at a point where it waits.
fn wait(victim: &mut Running) {
    victim.child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("the victim answers");
}

fn go_on(victim: &mut Running) {
    victim.child.stdin.as_mut().expect("piped").write_all(b".").expect("the victim listens");
    wait(victim);
}

/// Runs the victim with a mark before and behind its work.
fn run(trace: Trace) -> Outcome {
    let mut victim = trace.spawn();
    wait(&mut victim);
    let pid = victim.target_pid();
    ctl_ok(pid, &["mark", "loaded"]);
    go_on(&mut victim);
    ctl_ok(pid, &["mark", "worked"]);
    go_on(&mut victim);
    victim.child.stdin.take();
    victim.finish().expect_code(0)
}

fn ages() -> Trace {
    Trace::of(victim::build("ages.c", &["-O1", "-g", "-pthread"]))
}

fn line(marker: &str) -> u64 {
    line_of("ages.c", &format!("// LINE {marker}"))
}

/// Milliseconds from a mark to the snapshot.
fn since_mark(snapshot: &Snapshot, text: &str) -> String {
    let history = history(snapshot);
    let mark = history.marks.iter().find(|mark| mark.kind == USER_MARK && mark.text == text).expect("a mark");
    format!("{}ms", history.end() - mark.at)
}

fn first(report: &Report) -> (u64, u64, u64) {
    let row = &report.stats[0];
    (row.most_recent().lineno, row.size, row.count)
}

fn row<'r>(report: &'r Report, marker: &str) -> &'r Stat {
    let found = report.stats.iter().find(|row| row.most_recent().lineno == line(marker));
    found.unwrap_or_else(|| panic!("no row of {marker}: {:?}", report.stats))
}

#[test]
fn the_first_row_of_each_age_is_the_line_of_the_blocks() {
    let outcome = run(ages());
    let snapshot = outcome.snapshot();
    assert_ages(&snapshot);
    let age = since_mark(&snapshot, "loaded");
    let old = outcome.report(&["--older-than", &age]);
    assert_eq!((first(&old), old.stats.len()), ((line("old"), 60 * 1003, 60), 1));
    let bound = old.ages.expect("ages").older_than.expect("a bound");
    assert_eq!(format!("{}ms", bound.milliseconds), age);
    assert_eq!(bound.answered_milliseconds, bound.milliseconds, "a mark is a border: {bound:?}");
    let young = outcome.report(&["--younger-than", &age]);
    assert_eq!(young.ages.as_ref().and_then(|ages| Some(&ages.younger_than.as_ref()?.time)), Some(&bound.time));
    assert_eq!(first(&young), (line("young"), 300 * 3001, 300));
    // All blocks of the cache were replaced.
    assert_eq!(young.at_line("ages.c", line("cache")), (50 * 2001, 50));
    let both = outcome.report(&["--older-than", &since_mark(&snapshot, "worked"), "--younger-than", &age]);
    assert_eq!(both.total.size, young.total.size, "nothing was allocated behind the work");
    // Any grouping and format.
    let sizes = outcome.report(&["--younger-than", &age, "--by", "size"]);
    assert_eq!((sizes.stats[0].key.as_u64(), sizes.stats[0].count), (Some(3001), 300));
    let folded = Command::new(&crate::support::programs::programs().report)
        .arg(outcome.snapshot_path())
        .args(["--older-than", &age, "--format", "folded"])
        .output()
        .expect("report runs");
    let text = String::from_utf8(folded.stdout).expect("UTF-8");
    assert!(text.lines().count() == 1 && text.trim_end().ends_with(" 60180"), "{text}");
    let notes = String::from_utf8_lossy(&folded.stderr).into_owned();
    assert!(notes.contains("born before") && notes.contains("births are known to"), "{notes}");
}

#[test]
fn classes_of_age_are_all_live_blocks() {
    let outcome = run(ages());
    let report = outcome.report(&["--by", "age"]);
    let all: (u64, u64) = report.stats.iter().fold((0, 0), |sum, row| (sum.0 + row.size, sum.1 + row.count));
    assert_eq!(all, (report.native().current, report.native().blocks));
    const CLASSES: [&str; 8] = [
        "< 1 s",
        "1 s to 10 s",
        "10 s to 1 min",
        "1 min to 10 min",
        "10 min to 1 h",
        "1 h to 1 day",
        "1 day to 7 days",
        "7 days or more",
    ];
    let places: Vec<usize> =
        report.stats.iter().map(|row| CLASSES.iter().position(|&class| row.key == class).expect("a class")).collect();
    assert!(places.is_sorted() && places[0] <= 3, "the youngest first: {places:?}");
    for bound in report.ages.expect("ages").classes {
        let off = bound.answered_milliseconds.abs_diff(bound.milliseconds);
        assert!(off * 2 <= bound.step_milliseconds, "no border is nearer: {bound:?}");
    }
}

#[test]
fn churn_is_named_first_and_counts_only_blocks_freed_at_once_by_their_thread() {
    let outcome = run(ages());
    let report = outcome.report(&["--churn"]);
    assert_eq!((report.at.as_str(), first(&report)), ("total", (line("churn"), 6_400_000, 100_000)));
    let churn = |marker: &str| row(&report, marker).churn.as_ref().expect("churn");
    assert_eq!(churn("churn").temporary, Some(100_000));
    assert!(churn("churn").allocations_per_second > 0.0);
    for marker in ["pair", "pair too", "handed"] {
        let churn = churn(marker);
        assert_eq!(churn.temporary, Some(0), "{marker}");
        assert_eq!(churn.within_step + churn.ended.iter().sum::<u64>(), 1000, "{marker}");
    }
    let cache = churn("cache");
    assert_eq!((cache.temporary, cache.within_step + cache.ended.iter().sum::<u64>()), (Some(0), 200));
    let old = churn("old");
    assert_eq!((old.within_step, old.ended.iter().sum::<u64>()), (0, 40), "they outlived a step");
    let by_function = outcome.report(&["--churn", "--by", "function"]);
    assert_eq!(by_function.stats[0].key, "churn");
}

#[test]
fn what_a_range_has_left_is_known_behind_the_range_too() {
    let outcome = run(ages());
    let report = outcome.report(&["--since", "mark:loaded", "--until", "mark:worked"]);
    let survived = report.survived.as_ref().expect("survivors");
    let (since, until) = (report.since.as_ref().expect("a range"), report.instant.as_ref().expect("a range"));
    assert_eq!((&survived.born_after, &survived.born_until), (&since.time, &until.time), "marks are borders");
    let of = |marker: &str| {
        let row = row(&report, marker);
        let survived = row.survived.as_ref().expect("survivors");
        (row.change.as_deref().expect("a change"), row.count_diff.expect("a change"), survived.size, survived.count)
    };
    assert_eq!(of("young"), ("new", 300, 300 * 3001, 300));
    // A cache at its bound does not grow, and yet all of it is new.
    assert_eq!(of("cache"), ("same", 0, 50 * 2001, 50));
    assert_eq!(of("old"), ("shrunk", -40, 0, 0));
    let sum: u64 = report.stats.iter().filter_map(|row| row.survived.as_ref()).map(|survived| survived.size).sum();
    assert_eq!(sum, survived.size);
    // Nothing of the time behind the work.
    let later = outcome.report(&["--since", "mark:worked"]);
    assert_eq!(later.survived.expect("survivors").count, 0);
}

#[test]
fn samples_have_ages_too_and_no_temporary_ones() {
    let outcome = run(ages().option("--sample").option("2K"));
    let snapshot = outcome.snapshot();
    let ages = snapshot.ages.as_ref().expect("ages");
    assert_eq!(
        ages.blocks.iter().map(|born| born.count).sum::<u64>(),
        snapshot.live.iter().map(|row| row.count).sum::<u64>()
    );
    let text = |options: &[&str]| {
        let report = &crate::support::programs::programs().report;
        let output = Command::new(report).arg(outcome.snapshot_path()).args(options).output().expect("report runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let young = text(&["--younger-than", &since_mark(&snapshot, "loaded"), "--limit", "1"]);
    assert!(young.contains(&format!("ages.c:{}: ~", line("young"))), "{young}");
    let churn = text(&["--churn"]);
    assert!(churn.contains("temporary ones are not known of samples"), "{churn}");
}

#[test]
fn a_run_without_a_history_has_no_ages_and_says_so() {
    let outcome = run_without_history();
    for options in [&["--by", "age"][..], &["--older-than", "1s"], &["--churn"]] {
        let report = &crate::support::programs::programs().report;
        let output = Command::new(report).arg(outcome.snapshot_path()).args(options).output().expect("report runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("there are no"), "{options:?}: {error}");
    }
}

fn run_without_history() -> Outcome {
    let mut victim = ages().option("--no-history").spawn();
    wait(&mut victim);
    go_on(&mut victim);
    victim.child.stdin.take();
    victim.finish().expect_code(0)
}

/// A forked child knows the births of what it has inherited, from before its own history.
#[test]
fn a_forked_child_knows_how_old_its_inheritance_is() {
    let mut victim = Trace::of(victim::build("ages.c", &["-O1", "-g", "-pthread"])).arg("fork").spawn();
    wait(&mut victim);
    let pid = victim.target_pid();
    ctl_ok(pid, &["mark", "loaded"]);
    go_on(&mut victim);
    victim.child.stdin.take();
    let outcome = victim.finish().expect_code(0);
    let folder = outcome.directory().join("out");
    let mut children = std::fs::read_dir(&folder).expect("the children's folder").flatten();
    let path = children.next().expect("a child").path();
    let (child, parent) = (read_snapshot(&path), outcome.snapshot());
    let ages = child.ages.as_ref().expect("ages");
    let begun = history(&child).begun;
    let mut born: BTreeMap<u64, u64> = BTreeMap::new();
    for row in &ages.blocks {
        let live = &child.live[row.live as usize];
        if live.domain == Domain::Native && ages.begins[row.span as usize] < begun {
            *born.entry(live.size).or_default() += row.count;
        }
    }
    assert_eq!((born.get(&1003), born.get(&3001)), (Some(&60), Some(&300)), "{born:?}");
    let mark = history(&parent).marks.iter().find(|mark| mark.text == "loaded").expect("a mark");
    let end = history(&child).begun + history(&child).end();
    let age = end - (history(&parent).begun + mark.at);
    // The two clocks of the day differ by the time of taking the snapshots.
    let old = report_on(&path, &["--older-than", &format!("{age}ms")]);
    assert_eq!(old.stats[0].most_recent().lineno, line("old"), "{age} {:?}", old.stats);
}

/// The rule of the allocator is that of the very allocator, for each of its sizes.
#[test]
fn usable_sizes_are_those_of_the_allocator() {
    let mut libraries = vec![("glibc", None)];
    for (name, library) in
        [("jemalloc", "libjemalloc.so.2"), ("mimalloc", "libmimalloc.so.2.0"), ("tcmalloc", "libtcmalloc_minimal.so.4")]
    {
        match installed(library) {
            Some(path) => libraries.push((name, Some(path))),
            None => continue,
        }
    }
    for (name, library) in libraries {
        let mut trace = Trace::of(victim::build("usable.c", &["-O1"]));
        if let Some(library) = library {
            trace = trace.env("LD_PRELOAD", library);
        }
        let mut victim = trace.spawn();
        let mut text = String::new();
        let mut lines = BufReader::new(victim.child.stdout.take().expect("piped"));
        while !text.ends_with("kept 1\n") {
            assert_ne!(lines.read_line(&mut text).expect("the victim's lines"), 0, "{name} {text}");
        }
        // A snapshot looks at the objects of the process.
        let path = victim.snapshot_path().with_file_name("now.snap.zst");
        ctl_ok(victim.target_pid(), &["snapshot", "-o", path.to_str().expect("UTF-8")]);
        victim.child.stdin.take();
        let _folder = victim.finish().expect_code(0);
        let report = report_on(&path, &["--by", "size"]);
        let rounding = report.rounding.as_ref().expect("a report by size");
        if name == "tcmalloc" {
            let why = rounding.unknown.as_ref().expect("a reason");
            assert!(why.contains("tcmalloc is not known") && rounding.unused.is_none(), "{rounding:?}");
            continue;
        }
        assert_eq!((rounding.allocator.as_deref(), &rounding.unknown), (Some(name), &None));
        let usable: BTreeMap<u64, u64> =
            report.stats.iter().filter_map(|row| Some((row.key.as_u64().expect("a size"), row.usable?))).collect();
        let mut printed = printed(text.as_bytes());
        printed.remove("kept");
        assert!(printed.len() > 4000);
        for (size, wanted) in printed {
            let size: u64 = size.strip_prefix("usable_").expect("a size").parse().expect("a number");
            assert_eq!(usable.get(&size), Some(&wanted), "{name}: {size}");
        }
        let unused = report.stats.iter().filter_map(|row| Some((row.usable? - row.key.as_u64()?) * row.count)).sum();
        assert_eq!(rounding.unused, Some(unused));
        assert_eq!(rounding.unknown_blocks, Some(0));
    }
}
