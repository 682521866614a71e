//! Sampling on real programs: counters are exact, intervals of estimates contain the truth, and no
//! free of a sample is lost.

use crate::support::python::pythons;
use crate::support::stepped::{Stepped, detach};
use crate::support::trace::{Outcome, Trace, ctl, ctl_ok, read_snapshot, stats};
use crate::support::victim::{self, line_of};
use crate::support::{programs, stdout_of, wait_for};
use serde_json::Value;
use std::process::Command;

fn traced(mode: &str, interval: &str, seed: u64) -> Outcome {
    Trace::of(victim::build("sampled.c", &["-O1", "-pthread"]))
        .arg(mode)
        .option("--sample")
        .option(interval)
        .env("HEAPLINE_SAMPLE_SEED", seed.to_string())
        .run()
        .expect_code(0)
}

/// Returns a report as JSON, possibly with estimates.
pub fn json(outcome: &Outcome, options: &[&str]) -> Value {
    let mut report = Command::new(&programs().report);
    report.arg(outcome.snapshot_path()).args(["--format", "json", "--limit", "0"]).args(options);
    serde_json::from_str(&stdout_of(&mut report)).expect("JSON")
}

fn native(report: &Value) -> &Value {
    let domains = report["domains"].as_array().expect("domains");
    domains.iter().find(|row| row["domain"] == "native").expect("native")
}

/// Whether the intervals of a row contain this number of bytes and blocks.
fn holds(row: &Value, size: u64, count: u64) -> bool {
    let within = |name: &str, n: u64| {
        let [from, to] = [0, 1].map(|i| row[name][i].as_u64().expect("an interval"));
        (from..=to).contains(&n)
    };
    within("size_interval", size) && within("count_interval", count)
}

#[test]
fn calls_are_counted_exactly_and_estimates_hold_the_truth() {
    let mut held = 0;
    const ROUNDS: u64 = 10;
    for seed in 0..ROUNDS {
        let outcome = traced("keep", "64K", seed);
        let (said, report) = (outcome.printed(), json(&outcome, &["--by", "lineno", "--filter", "*/sampled.c"]));
        assert_eq!(report["snapshot"]["mode"], "sampled");
        assert_eq!(report["snapshot"]["sample_interval"], 64 << 10);
        assert_eq!(report["snapshot"]["contradictions"], 0);
        let domain = native(&report);
        // The loader and the C library allocate a few blocks as well.
        for (name, figure) in [("allocs", "allocs"), ("bytes", "allocated_bytes"), ("frees", "frees")] {
            let (said, counted) = (said[name], domain[figure].as_u64().expect("a number"));
            assert!((said..said + 20_000.min(said / 100)).contains(&counted), "{name}: {counted}, and it said {said}");
        }
        let rows = report["stats"].as_array().expect("rows");
        for (line, size, count) in [("small", 100, 100_000), ("middle", 5000, 5000), ("moved", 700, 20_000)] {
            let number = line_of("sampled.c", &format!("// LINE {line}"));
            let row = rows.iter().find(|row| row["traceback"][0]["lineno"] == number).expect("a row");
            held += u32::from(holds(row, size * count, count));
        }
        // A block of a mebibyte is certainly a sample.
        let number = line_of("sampled.c", "// LINE large");
        let row = rows.iter().find(|row| row["traceback"][0]["lineno"] == number).expect("a row");
        assert_eq!((row["size"].as_u64(), row["count"].as_u64()), (Some(10 << 20), Some(10)));
        // Each thread has a row, and the rows add up.
        let threads: u64 = report["threads"]
            .as_array()
            .expect("threads")
            .iter()
            .map(|row| row["frees"].as_u64().expect("frees"))
            .sum();
        assert_eq!(Some(threads), domain["frees"].as_u64());
    }
    assert!(held >= 24, "{held} of {} intervals hold the truth", 3 * ROUNDS);
}

#[test]
fn no_free_of_a_sample_is_lost() {
    for interval in ["4K", "64K", "1M"] {
        let outcome = traced("none", interval, 3);
        let report = json(&outcome, &["--filter", "*/sampled.c"]);
        assert_eq!(report["total"]["size"], 0, "{interval}: {report}");
        assert_eq!(report["snapshot"]["contradictions"], 0);
        assert_eq!(report["snapshot"]["lost"], serde_json::json!({}));
    }
}

#[test]
fn a_forked_child_knows_its_parents_samples() {
    let outcome = traced("fork", "16K", 5);
    let children = std::fs::read_dir(outcome.directory().join("out")).expect("a folder of children");
    let files: Vec<_> = children.map(|entry| entry.expect("a file").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    for file in [outcome.snapshot_path(), files[0].clone()] {
        let snapshot = read_snapshot(&file);
        assert_eq!(snapshot.meta.contradictions.len(), 0, "{:?}", snapshot.meta.contradictions);
        let left: u64 = snapshot.live.iter().map(|row| row.count).sum();
        // The remaining samples are from before main or from the C library.
        assert!(left < 3, "{}: {left} samples were not freed", file.display());
        assert!(!snapshot.sampled.is_empty());
    }
    let [parent, child] = [outcome.snapshot_path(), files[0].clone()].map(|file| read_snapshot(&file).draws);
    let (parent, child) = (parent.expect("it has forked"), child.expect("it was forked"));
    assert_eq!((child.ancestors[0].by, child.ancestors.len()), (parent.by, 1), "who has drawn what it inherited");
    assert_ne!(child.by, parent.by);
}

#[test]
fn where_no_sample_was_met_nothing_is_an_estimate() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.snap.zst");
    let mut run = Command::new(&programs().aggregator);
    run.args(["run", "--sample", "1G", "-o"]).arg(&path).args(["--", "bash", "-c", ":"]);
    run.env("HEAPLINE_SAMPLE_SEED", "1");
    assert!(run.status().expect("it runs").success());
    let report = |options: &[&str]| stdout_of(Command::new(&programs().report).arg(&path).args(options));
    let text = report(&["--by", "lineno"]);
    assert!(text.contains("native: current ~0 B (0 B to ") && text.contains("in ~0 blocks (0 to "), "{text}");
    assert!(text.contains("Total allocated size: ~0 B (0 B to "), "{text}");
    let json: Value = serde_json::from_str(&report(&["--format", "json"])).expect("JSON");
    let domain = native(&json);
    // The upper end is the counted number of allocated bytes.
    assert_eq!(domain["current_interval"], serde_json::json!([0, domain["allocated_bytes"]]));
    assert_eq!(json["total"]["size_interval"], domain["current_interval"]);
    assert!(report(&["--format", "csv"]).starts_with("# No sample was met: "));
    assert!(report(&["--format", "html"]).contains("native, live: ~0 B (0 B to "));
}

#[test]
fn every_report_says_what_is_an_estimate() {
    let outcome = traced("keep", "256K", 1);
    let text = |options: &[&str]| {
        let mut report = Command::new(&programs().report);
        stdout_of(report.arg(outcome.snapshot_path()).args(options))
    };
    let plain = text(&["--by", "lineno"]);
    assert!(plain.contains("sampled, one in 256 KiB: ~") && plain.contains("native: current ~"), "{plain}");
    assert!(plain.lines().filter(|line| line.starts_with('#')).all(|line| line.contains('~')), "{plain}");
    assert!(plain.contains("Total allocated size: ~"), "{plain}");
    let csv = text(&["--format", "csv"]);
    assert!(csv.starts_with("size,count,size_from,size_to,count_from,count_to,filename"), "{csv}");
    assert!(text(&["--by", "thread"]).contains("All calls, counted exactly:"));
    assert!(text(&["--by", "traceback"]).contains("~"));
    let (said, page) = (outcome.stderr(), text(&["--format", "html"]));
    assert!(said.contains("heapline: peak about ") && said.contains(" native in about "), "{said}");
    assert!(page.contains(r#""sampled":true"#) && page.contains("native, live: ~"), "{page}");
}

#[test]
fn the_distance_can_be_changed_while_it_goes_on() {
    let mut victim =
        Stepped::start(Command::new(victim::build("ownheap.c", &["-O2", "-pthread", "-DLINKED"])).arg("2"));
    let snapshot = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&snapshot, &["--sample", "64K"]);
    victim.step(b'b');
    assert_eq!(stats(victim.pid()).snapshot.mode, "sampled");
    let pid = victim.pid();
    let said = ctl_ok(pid, &["set", "sample=1M"]);
    assert!(said.contains("one in 1024 KiB is sampled"), "{said}");
    let interval = || stats(pid).snapshot.sample_interval;
    assert_eq!(interval(), 1 << 20);
    ctl_ok(pid, &["set", "samples-per-second=3000"]);
    wait_for("the distance to be adapted", || (interval() != 1 << 20).then_some(()));
    victim.steps("e");
    detach(aggregator);
    assert!(!ctl(victim.pid(), &["set", "sample=0"]).status.success());
    // A later session of the same process is exact, and refuses to sample.
    let aggregator = victim.attach(&snapshot, &[]);
    assert_eq!(stats(victim.pid()).snapshot.mode, "exact");
    let refused = ctl(victim.pid(), &["set", "sample=64K"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("begin with --sample"), "{refused:?}");
    victim.steps("mmf");
    assert_eq!(stats(victim.pid()).native().allocs, 2);
    detach(aggregator);
    assert_eq!(victim.finish(), 0);
}

#[test]
fn pythons_objects_are_sampled_and_its_own_tracemalloc_works() {
    for python in pythons() {
        let script = "\
import tracemalloc
keep = [bytes(500) for i in range(100_000)]
tracemalloc.start()
x = [bytes(1000) for i in range(1000)]
print('own', tracemalloc.get_traced_memory()[0])
";
        let outcome =
            Trace::of(&python.program).args(["-c", script]).option("--sample").option("64K").run().expect_code(0);
        assert!(outcome.printed()["own"] > 1_000_000, "3.{}: CPython's own answers", python.minor);
        let report = json(&outcome, &["--domain", "python", "--at", "peak", "--by", "lineno"]);
        assert_eq!(report["snapshot"]["contradictions"], 0, "3.{}", python.minor);
        let row = &report["stats"][0];
        assert_eq!(row["traceback"][0]["lineno"], 2, "3.{}: {row}", python.minor);
        let size = row["size"].as_u64().expect("bytes");
        assert!((40_000_000..70_000_000).contains(&size), "3.{}: {size}", python.minor);
    }
}
