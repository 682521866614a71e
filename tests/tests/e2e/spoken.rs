//! What a program says of itself: pools of its own, marks and pauses by `heapline.h`, by the crate
//! and by the Python package; pauses by the operator.

use crate::history::history;
use crate::support::programs;
use crate::support::report::Report;
use crate::support::stepped::{Stepped, detach};
use crate::support::trace::{ctl_ok, live_sizes, read_snapshot, report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{Trace, wait_for};
use heapline_shared_format::snapshot::history::USER_MARK;
use heapline_shared_format::snapshot::{Domain, Snapshot};
use std::path::{Path, PathBuf};
use std::process::Command;

fn flags(more: &[&str]) -> Vec<String> {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../collector/api");
    let include = format!("-I{}", header.to_str().expect("UTF-8"));
    more.iter().map(|flag| (*flag).to_owned()).chain([include, "-Wextra".to_owned(), "-Werror".to_owned()]).collect()
}

fn built(more: &[&str]) -> PathBuf {
    let flags = flags(more);
    victim::build("spoken.c", &flags.iter().map(String::as_str).collect::<Vec<_>>())
}

fn plugin() -> PathBuf {
    built(&["-O1", "-DPLUGIN", "-shared", "-fPIC"])
}

fn marks(snapshot: &Snapshot) -> Vec<String> {
    let marks = history(snapshot).marks.iter().filter(|mark| mark.kind == USER_MARK);
    marks.map(|mark| mark.text.clone()).collect()
}

/// Live bytes, live blocks and allocations of a domain.
fn figures(report: &Report, domain: &str) -> Option<(u64, u64, u64)> {
    let row = report.domains.iter().find(|row| row.domain == domain)?;
    Some((row.current, row.blocks, row.allocs))
}

#[test]
fn a_pool_is_a_domain_with_a_name_and_a_mark_an_instant() {
    // However the program was built: the linker and strip must keep the note.
    let plain = built(&["-O1"]);
    let stripped = victim::stripped(&built(&["-O2"]));
    let others = [
        built(&["-O2", "-flto", "-ffunction-sections", "-Wl,--gc-sections"]),
        built(&["-O0", "-no-pie", "-fno-pie"]),
        stripped,
    ];
    for program in [&plain].into_iter().chain(&others) {
        let outcome = Trace::of(program).input("tukrf").run().expect_code(0);
        let report = outcome.report(&["--domain", "pool:pages"]);
        assert_eq!(figures(&report, "pool:pages"), Some((2300, 2, 4)), "{}", program.display());
        let snapshot = outcome.snapshot();
        assert_eq!(marks(&snapshot), ["half way"], "{}", program.display());
        let at = outcome.report(&["--domain", "pool:pages", "--at", "mark:half way"]);
        assert_eq!((at.total.size, at.total.count), (500, 2), "{}", program.display());
        let row = snapshot.domains.iter().find(|row| row.domain.to_string() == "pool:pages").expect("the pool");
        assert_eq!((row.current, row.allocs, row.frees), (2300, 4, 2));
    }
    let outcome = Trace::of(&plain).input("tMk").run().expect_code(0);
    crate::history::assert_sums(&outcome.snapshot());
    let report = outcome.report(&["--domain", "pool:pages"]);
    assert_eq!(
        report.at_line("spoken.c", line_of("spoken.c", "// LINE tracked")),
        (600, 3),
        "not heapline_track itself"
    );
    report.assert_exact();
}

#[test]
fn a_child_has_the_pools_of_its_parent() {
    let outcome = Trace::of(built(&["-O1"])).input("tf").run().expect_code(0);
    let folder = outcome.snapshot_path().with_extension("").with_extension("");
    let child = std::fs::read_dir(&folder).expect("a folder for children").flatten().next().expect("a child").path();
    let report = report_on(&child, &["--domain", "pool:pages"]);
    assert_eq!(figures(&report, "pool:pages").map(|(bytes, blocks, _)| (bytes, blocks)), Some((640, 4)));
}

#[test]
fn what_a_paused_thread_allocates_does_not_count() {
    let outcome = Trace::of(built(&["-O1"])).input("KpP").run().expect_code(0);
    let snapshot = outcome.snapshot();
    let sizes = live_sizes(&snapshot);
    assert_eq!((sizes.get(&600), sizes.get(&7000), sizes.get(&900), sizes.get(&90_000)), (Some(&1), None, None, None));
    let cause = snapshot.meta.unseen.iter().find(|cause| cause.kind == "paused").expect("it is said");
    assert!(cause.text.starts_with("2 allocations did not count"), "{}", cause.text);
    assert_eq!(snapshot.meta.contradictions.values().sum::<u64>(), 0);
    assert_eq!(snapshot.meta.untracked_frees, 1, "the 7,000 bytes");
    assert!(outcome.stderr().contains("NOT SEEN: pauses: 2 allocations did not count"), "{}", outcome.stderr());
}

#[test]
fn a_library_that_comes_late_is_heard() {
    let plugin = plugin();
    let outcome = Trace::of(built(&["-O1"])).arg(&plugin).input("td").run().expect_code(0);
    let report = outcome.report(&["--domain", "pool:plugged"]);
    assert_eq!(report.at_line("spoken.c", line_of("spoken.c", "// LINE plugged")), (50, 1));
    assert_eq!(marks(&outcome.snapshot()), ["plugged in"]);
}

#[test]
fn a_running_program_is_heard_from_the_attach_to_the_detach() {
    let mut victim = Stepped::start(Command::new(built(&["-O1"])).arg(plugin()));
    victim.steps("tkd");
    for round in 0..2 {
        let snapshot = victim.snapshot_path(&format!("{round}.snap.zst"));
        let aggregator = victim.attach(&snapshot, &[]);
        victim.steps("turkd");
        detach(aggregator);
        victim.steps("tuk");
        let report = report_on(&snapshot, &["--domain", "pool:pages"]);
        assert_eq!(figures(&report, "pool:pages"), Some((2300, 2, 4)), "round {round}");
        assert_eq!(figures(&report, "pool:plugged"), Some((50, 1, 1)), "round {round}");
        assert_eq!(marks(&read_snapshot(&snapshot)), ["half way", "plugged in"], "round {round}");
    }
    assert_eq!(victim.finish(), 0);
}

#[test]
fn a_program_that_nobody_traces_is_as_it_was() {
    let mut victim = Stepped::start(Command::new(built(&["-O1"])).arg(plugin()));
    victim.steps("tukrKpPdof");
    assert_eq!(victim.finish(), 0);
}

#[test]
fn more_pools_than_there_are_numbers_lose_no_byte() {
    let outcome = Trace::of(built(&["-O1"])).input("o").run().expect_code(0);
    let snapshot = outcome.snapshot();
    let pools = snapshot.domains.iter().filter(|row| matches!(row.domain, Domain::Pool(_)));
    assert_eq!(pools.map(|row| (row.current, row.blocks)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)), (2400, 300));
    let report = outcome.report(&["--domain", "pool:(further pools)"]);
    assert_eq!(figures(&report, "pool:(further pools)"), Some((45 * 8, 45, 45)));
}

#[test]
fn pools_are_exact_in_a_sampled_trace() {
    let outcome = Trace::of(built(&["-O1"])).option("--sample=64K").input("tukr").run().expect_code(0);
    let report = outcome.report(&["--domain", "pool:pages"]);
    assert_eq!(figures(&report, "pool:pages"), Some((2300, 2, 4)));
}

#[test]
fn a_rust_program_says_the_same() {
    let program = victim::build_rust_with_api("spoken.rs");
    let outcome = Trace::of(program).run().expect_code(0);
    let report = outcome.report(&["--domain", "pool:rows"]);
    assert_eq!(figures(&report, "pool:rows"), Some((140, 4, 5)));
    assert_eq!(report.stats[0].most_recent().function.as_deref(), Some("spoken::main"), "not heapline::track itself");
    let snapshot = outcome.snapshot();
    assert_eq!(marks(&snapshot), ["from Rust"]);
    let allocated: Vec<u64> =
        snapshot.totals.iter().filter(|row| row.domain == Domain::Native).map(|row| row.total_size).collect();
    assert!(allocated.contains(&6_000) && !allocated.iter().any(|&size| size >= 70_000), "{allocated:?}");
}

#[test]
fn the_operator_pauses_and_resumes_the_process() {
    let mut victim = Trace::of(victim::build("story.c", &["-O0", "-g"])).option("--paused").spawn();
    crate::history::step(&mut victim, true);
    let pid = victim.target_pid();
    assert_eq!(stats(pid).native().allocs, 0, "the first block came in the pause");
    assert_eq!(ctl_ok(pid, &["pause"]).trim(), "the tracing was paused already");
    assert_eq!(ctl_ok(pid, &["resume"]).trim(), "allocations count from now on");
    crate::history::step(&mut victim, false);
    assert_eq!((stats(pid).native().allocs, stats(pid).native().current), (1, 50_000_000));
    ctl_ok(pid, &["pause"]);
    crate::history::step(&mut victim, false);
    wait_for("the free of the big block", || (stats(pid).native().current == 0).then_some(()));
    crate::history::step(&mut victim, false);
    assert_eq!(stats(pid).native().allocs, 1);
    victim.child.stdin.take();
    let snapshot = victim.finish().snapshot();
    let kinds: Vec<&str> = history(&snapshot).marks.iter().map(|mark| mark.kind.as_str()).collect();
    assert_eq!(kinds, ["start", "resume", "pause"]);
    assert!(snapshot.meta.unseen.iter().any(|cause| cause.kind == "paused"));
    let help = Command::new(&programs().aggregator).args(["ctl", "--help"]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&help.stdout).contains("resume"));
}
