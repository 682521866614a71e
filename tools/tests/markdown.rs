//! Tests of Markdown and of the bound of growth: a report for a comment on a change, and a gate.

mod support;

use heapline_shared_format::snapshot::Domain;
use support::scene::{report, stderr, stdout};
use support::snapshot::Builder;
use tempfile::{TempDir, tempdir};

/// Two snapshots of a program: a line grows from 1000 to 6000 bytes, and another shrinks by 500.
fn snapshots() -> (TempDir, [String; 2]) {
    let dir = tempdir().unwrap();
    let save = |name: &str, grows: u64, shrinks: u64| {
        let mut builder = Builder::new(None);
        builder.snapshot.meta.command = "app --mode `a|b`".to_string();
        let main = ("/src/main.cpp", "main", 1);
        let parse = builder.calls(&[main, ("/src/parse.cpp", "parse<int|char>", 7)]);
        let log = builder.calls(&[main, ("/src/log.cpp", "log", 9)]);
        builder.blocks(Domain::Native, parse, 0, 1000, grows);
        builder.blocks(Domain::Native, log, 0, 500, shrinks);
        builder.save(dir.path(), name).to_str().unwrap().to_string()
    };
    let paths = [save("old.snap.zst", 1, 2), save("new.snap.zst", 6, 1)];
    (dir, paths)
}

fn shown(arguments: &[&str]) -> String {
    let output = report(&[arguments, &["--format", "markdown"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn a_difference_is_a_table_for_a_comment() {
    let (_dir, [old, new]) = snapshots();
    let expected = "\
**+4500 B to 6500 B in 7 blocks: differences of native memory live at the snapshot**

`` app --mode `a|b` ``, process 4711: exited with status 0; snapshot of 2025-11-21T00:37:00Z

| # | size | change | blocks | change | line | function |
| ---: | ---: | ---: | ---: | ---: | --- | --- |
| 1 | 6000 B | +5000 B | 6 | +5 | `/src/parse.cpp:7` | `parse<int\\|char>` |
| 2 | 500 B | -500 B | 1 | -1 | `/src/log.cpp:9` | `log` |
";
    assert_eq!(shown(&[&new, "--diff", &old]), expected);
    let limited = shown(&[&new, "--diff", &old, "--limit", "1"]);
    assert!(limited.ends_with(" |\n\n1 more line not shown.\n"), "{limited}");
}

#[test]
fn every_grouping_has_its_table_and_a_tree_is_a_list() {
    let (_dir, [_, new]) = snapshots();
    for by in ["filename", "function", "lineno", "module", "size", "thread", "traceback"] {
        let text = shown(&[&new, "--by", by]);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        // A separator of cells is not escaped.
        let cells = |row: &str| row.replace("\\|", "").matches('|').count();
        assert!(rows.len() > 2 && rows.iter().all(|row| cells(row) == cells(rows[0])), "{by}: {text}");
    }
    let tracebacks = shown(&[&new, "--by", "traceback", "--limit", "1"]);
    let cell = "| `parse<int\\|char>` `/src/parse.cpp:7`<br>`main` `/src/main.cpp:1` |\n";
    assert!(tracebacks.contains(cell), "{tracebacks}");
    let tree = shown(&[&new, "--by", "tree"]);
    let list = "\
- 6500 B, 100 %: `main` `/src/main.cpp:1`
  - 6000 B, 92.3 %: `parse<int|char>` `/src/parse.cpp:7`
  - 500 B, 7.7 %: `log` `/src/log.cpp:9`
";
    assert!(tree.ends_with(list), "{tree}");
    let chain = shown(&[&new, "--by", "tree", "--focus", "log"]);
    assert!(chain.ends_with("\n- 500 B, 100 %: `main` `/src/main.cpp:1` → `log` `/src/log.cpp:9`\n"), "{chain}");
}

#[test]
fn growth_above_the_bound_has_a_status_and_a_sentence() {
    let (_dir, [old, new]) = snapshots();
    let run = |options: &[&str]| {
        let output = report(&[&[new.as_str(), "--diff", old.as_str()], options].concat());
        assert!(stdout(&output).contains("parse.cpp:7") || options.contains(&"--focus"), "the report is written too");
        (output.status.code(), stderr(&output))
    };
    assert_eq!(run(&["--fail-above", "4500"]), (Some(0), String::new()), "the sum of both lines");
    let said = |grown: &str, most: &str, at: &str| {
        format!("report: native memory live at the {at} has grown by {grown}, more than the {most} of --fail-above\n")
    };
    assert_eq!(run(&["--fail-above", "4499"]), (Some(3), said("4500 B", "4499 B", "snapshot")));
    assert_eq!(run(&["--fail-above", "4KB", "--limit", "1"]), (Some(3), said("4500 B", "4096 B", "snapshot")));
    assert_eq!(run(&["--fail-above", "13K", "--at", "peak"]), (Some(3), said("13.2 KiB", "13.0 KiB", "peak")));
    assert_eq!(run(&["--fail-above", "0", "--focus", "^log$"]), (Some(0), String::new()), "what is chosen has shrunk");
    assert_eq!(run(&["--fail-above", "4999", "--focus", "parse", "--cumulative"]).0, Some(3));
    assert_eq!(run(&["--fail-above", "5000", "--focus", "parse", "--cumulative"]).0, Some(0), "each block once");
    let shrunk = report(&[&old, "--diff", &new, "--fail-above", "0", "--format", "json"]);
    assert_eq!((shrunk.status.code(), stderr(&shrunk)), (Some(0), String::new()));
}
