//! Tests of `report --tree`: the processes of a folder, each below its parent, and their sums.

mod support;

use heapline_shared_format::snapshot::{Birth, Domain, Origin};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use support::scene::{report, stderr, stdout};
use support::snapshot::Builder;
use tempfile::tempdir;

/// Saves the snapshot of a process with `count` blocks of 100 bytes from a place common to all
/// processes, and a block of `pid` bytes from a place of its own.
fn process(folder: &Path, name: &str, pid: u32, origin: Option<(u32, Birth, Option<u64>)>, count: u64) {
    let mut builder = Builder::new(None);
    let (shared, own) = (builder.stack(&[0x1000, 0x2000]), builder.stack(&[0x1000, 0x3000 + u64::from(pid)]));
    builder.blocks(Domain::Native, shared, 0, 100, count);
    builder.blocks(Domain::Native, own, 0, u64::from(pid), 1);
    let snapshot = &mut builder.snapshot;
    snapshot.meta.pid = pid;
    snapshot.meta.command = format!("command {pid}");
    snapshot.meta.lost = BTreeMap::from([("memory".to_string(), u64::from(pid == 12))]);
    snapshot.origin = origin.map(|(parent, birth, inherited)| Origin {
        parent,
        birth,
        inherited: inherited.map(|blocks| BTreeMap::from([("native".to_string(), blocks)])),
    });
    builder.save(folder, name);
}

/// Makes the snapshots of a tree:
///
/// | Process | Parent | Birth |
/// | --- | --- | --- |
/// | 10 | none | |
/// | 11 | 10 | exec |
/// | 12 | 11 | fork |
/// | 13 | 10 | exec |
/// | 14 | 99, not present | exec |
fn family() -> tempfile::TempDir {
    let dir = tempdir().unwrap();
    let folder = dir.path().join("run");
    std::fs::create_dir(&folder).unwrap();
    process(dir.path(), "run.snap.zst", 10, None, 1);
    process(&folder, "heapline-d-14.snap.zst", 14, Some((99, Birth::Exec, None)), 1);
    process(&folder, "heapline-a-11.snap.zst", 11, Some((10, Birth::Exec, None)), 2);
    process(&folder, "heapline-b-12.snap.zst", 12, Some((11, Birth::Fork, Some(3))), 3);
    process(&folder, "heapline-c-13.snap.zst", 13, Some((10, Birth::Exec, None)), 4);
    // A program replaced by exec is no process of the tree.
    process(&folder, "heapline-c-13.snap.zst.exec1", 13, Some((10, Birth::Exec, None)), 1000);
    dir
}

fn tree(path: &Path, arguments: &[&str]) -> String {
    let output = report(&[&["--tree", path.to_str().unwrap()], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

fn json(path: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&tree(path, &[arguments, &["--format", "json"]].concat())).unwrap()
}

#[test]
fn each_process_stands_below_its_parent() {
    let dir = family();
    let text = tree(&dir.path().join("run"), &[]);
    let expected = "\
Tree of 5 processes, native memory:
  10 command 10: current 110 B in 2 blocks, peak 330 B, exited with status 0
    11 command 11: current 211 B in 3 blocks, peak 633 B, started, exited with status 0
      12 command 12: current 312 B in 4 blocks, peak 936 B, forked, exited with status 0
    13 command 13: current 413 B in 5 blocks, peak 1239 B, started, exited with status 0
  14 command 14: current 114 B in 2 blocks, peak 342 B, started, exited with status 0
";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("native: current 1160 B in 16 blocks, peaks together 3480 B;"), "{text}");
    assert!(text.contains("LOST: 1 event missing (memory 1)"), "{text}");
}

#[test]
fn groups_are_sums_over_all_processes() {
    let dir = family();
    for place in ["run", "run/", "run.snap.zst"] {
        let json = json(&dir.path().join(place), &["--by", "traceback"]);
        assert_eq!(json["heapline_report"], 1);
        assert_eq!((json["total"]["size"].as_u64(), json["total"]["count"].as_u64()), (Some(1160), Some(16)));
        assert_eq!((json["stats"][0]["size"].as_u64(), json["stats"][0]["count"].as_u64()), (Some(1100), Some(11)));
        assert_eq!(json["domains"][0]["current"], 1160);
        let processes = json["processes"].as_array().unwrap();
        let pids: Vec<_> = processes.iter().map(|process| process["pid"].as_u64().unwrap()).collect();
        assert_eq!(pids, [10, 11, 12, 13, 14]);
        assert_eq!((processes[0]["parent"].as_u64(), &processes[0]["birth"]), (None, &Value::Null));
        assert_eq!(processes[2]["birth"], "fork");
        assert_eq!((processes[2]["inherited_blocks"].as_u64(), processes[2]["current"].as_u64()), (Some(3), Some(312)));
    }
}

#[test]
fn a_tree_is_compared_with_a_tree() {
    let dir = family();
    let older = tempdir().unwrap();
    process(older.path(), "heapline-x-1.snap.zst", 1, None, 5);
    let json = json(&dir.path().join("run"), &["--by", "traceback", "--diff", older.path().to_str().unwrap()]);
    assert_eq!((json["stats"][0]["size"].as_u64(), json["stats"][0]["size_diff"].as_i64()), (Some(1100), Some(600)));
}

#[test]
fn a_circle_of_parents_and_a_file_alone_are_no_problem() {
    let dir = tempdir().unwrap();
    process(dir.path(), "a.snap.zst", 1, Some((2, Birth::Fork, None)), 1);
    process(dir.path(), "b.snap.zst", 2, Some((1, Birth::Fork, None)), 1);
    process(dir.path(), "c.snap.zst", 3, Some((3, Birth::Fork, None)), 1);
    let json = json(dir.path(), &[]);
    assert_eq!(json["processes"].as_array().unwrap().len(), 3);
    assert!(tree(&dir.path().join("a.snap.zst"), &[]).starts_with("Tree of 1 process,"), "one without a folder");
}

#[test]
fn what_is_no_tree_is_refused_in_one_line() {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join("bad.snap.zst"), "no snapshot").unwrap();
    let empty = tempdir().unwrap();
    let (bad, empty) = (dir.path().to_str().unwrap(), empty.path().to_str().unwrap());
    for (path, reason) in [(bad, "bad.snap.zst"), (empty, "there is no *.snap.zst"), ("/nonexistent", "cannot read")] {
        let output = report(&["--tree", path]);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains(reason) && text.lines().count() == 1, "{text}");
    }
}
