//! Tests of `report --tree`: the processes of a folder, each below its parent, and their sums.

mod support;

use heapline_shared_format::snapshot::{Birth, Domain, Origin};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use support::page::Page;
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
    let text = tree(&dir.path().join("run"), &["-v"]);
    let expected = "\
Tree of 5 processes: NOT EXACT (see below); peaks together: native 3480 B
command 10 and its children; snapshot of 2025-11-21T00:37:00Z
  10 command 10: current 110 B in 2 blocks, peak 330 B, exited with status 0
    11 command 11: current 211 B in 3 blocks, peak 633 B, started, exited with status 0
      12 command 12: current 312 B in 4 blocks, peak 936 B, forked with 3 blocks inherited, exited with status 0
    13 command 13: current 413 B in 5 blocks, peak 1239 B, started, exited with status 0
  14 command 14: current 114 B in 2 blocks, peak 342 B, started, exited with status 0
";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("native: current 1160 B in 16 blocks, peaks together 3480 B;"), "{text}");
    assert!(text.contains("LOST: 1 event missing (memory 1)"), "{text}");
}

/// 11 and 13 are children of 10 with the same program.
#[test]
fn processes_of_a_program_are_a_row() {
    let dir = family();
    let text = tree(&dir.path().join("run"), &[]);
    let expected = "
  10 command 10: current 110 B in 2 blocks, peak 330 B, exited with status 0
    2 x victim: current 624 B in 8 blocks, peaks together 1872 B, the greatest 1239 B (process 13), the median 1239 B, started, exited with status 0
      12 command 12: current 312 B in 4 blocks, peak 936 B, forked with 3 blocks inherited, exited with status 0
  14 command 14: current 114 B in 2 blocks, peak 342 B, started, exited with status 0
native: ";
    assert!(text.contains(expected), "{text}");
    let limited = tree(&dir.path().join("run"), &["--limit", "1"]);
    let expected = "
  10 command 10: current 110 B in 2 blocks, peak 330 B, exited with status 0
  4 more processes are not shown: --limit 0 shows all
native: ";
    assert!(limited.contains(expected), "{limited}");
}

/// The workers of a server: a row with the number, the greatest and the median, and below the row
/// the children of all workers. The heaviest sibling comes first.
#[test]
fn many_workers_are_a_row_with_the_greatest_and_the_median() {
    let dir = tempdir().unwrap();
    process(dir.path(), "a.snap.zst", 1, None, 0);
    for pid in 10..=40 {
        process(dir.path(), &format!("{pid}.snap.zst"), pid, Some((1, Birth::Fork, Some(u64::from(pid)))), pid.into());
        let child = pid + 100;
        process(dir.path(), &format!("{child}.snap.zst"), child, Some((pid, Birth::Fork, None)), 0);
    }
    let text = tree(dir.path(), &["--at", "peak"]);
    // Each worker's peak is three times its blocks of 100 bytes and its own block.
    let expected = "
  1 command 1: current 1 B in 1 block, peak 3 B, exited with status 0
    31 x victim: current 76.4 KiB in 806 blocks, peaks together 229 KiB, the greatest 11.8 KiB (process 40), the median 7575 B, forked with 10 to 40 blocks inherited, exited with status 0
      31 x victim: current 3875 B in 31 blocks, peaks together 11.4 KiB, the greatest 420 B (process 140), the median 375 B, forked, exited with status 0
native: ";
    assert!(text.contains(expected), "{text}");
    let each = tree(dir.path(), &["--at", "peak", "-v", "--limit", "4"]);
    let rows: Vec<&str> = each.lines().skip(2).take(5).map(|row| row.trim().split(' ').next().unwrap()).collect();
    assert_eq!(rows, ["1", "40", "140", "39", "59"], "{each}");
    assert!(each.contains("\n  59 more processes are not shown: --limit 0 shows all\n"), "{each}");
}

#[test]
fn a_note_of_many_processes_is_told_once() {
    let dir = tempdir().unwrap();
    for pid in 1..=9 {
        let mut builder = Builder::new(None);
        builder.snapshot.meta.pid = pid;
        builder.snapshot.meta.notes.push(if pid == 7 { "another" } else { "the same" }.to_string());
        builder.save(dir.path(), &format!("{pid}.snap.zst"));
    }
    let text = tree(dir.path(), &[]);
    let notes: Vec<&str> = text.lines().filter(|line| line.starts_with("Note: ")).collect();
    assert_eq!(notes, ["Note: processes 1, 2, 3 and 5 more: the same", "Note: process 7: another"], "{text}");
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
    assert!(tree(&dir.path().join("a.snap.zst"), &[]).starts_with("Tree of 1 process: "), "one without a folder");
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

#[test]
fn a_page_has_all_processes() {
    let folder = family();
    let path = folder.path().join("run");
    let page = Page::of(&tree(&path, &["--format", "html"]));
    let json = json(&path, &[]);
    let total = (&json["total"]["size"], &json["total"]["count"]);
    let (size, count) = page.sums("native", "live", false);
    assert_eq!((size.to_string(), count.to_string()), (total.0.to_string(), total.1.to_string()));
    let processes = page.head["processes"].as_array().unwrap();
    let place = |one: &Value| (one["pid"].as_u64().unwrap(), one["depth"].as_u64().unwrap());
    let expected = json["processes"].as_array().unwrap().iter().map(|one| one["pid"].as_u64().unwrap());
    assert_eq!(processes.iter().map(|one| place(one).0).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert!(processes.iter().any(|one| place(one).1 > 0));
}
