//! Tests of the choice of stacks by any of their frames, and of folded recursion.

mod support;

use heapline_shared_format::snapshot::Domain;
use serde_json::Value;
use support::scene::{report, stderr, stdout};
use support::snapshot::Builder;
use tempfile::{TempDir, tempdir};

/// Blocks of a service, each of a size of its own:
///
/// | Bytes | Stack, the oldest frame first |
/// | --- | --- |
/// | 1000 | main, serve, parse, walk |
/// | 200 | main, serve, parse, walk, walk, walk |
/// | 30 | main, serve, log |
/// | 4 | main, load |
fn service() -> (TempDir, String) {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let [main, serve, parse] = [("/app/main.py", "main", 1), ("/app/web.py", "serve", 2), ("/lib/json.py", "parse", 3)];
    let [walk, log, load] = [("/lib/json.py", "walk", 4), ("/app/log.py", "log", 5), ("/app/main.py", "load", 6)];
    for (size, calls) in [
        (1000, &[main, serve, parse, walk][..]),
        (200, &[main, serve, parse, walk, walk, walk]),
        (30, &[main, serve, log]),
        (4, &[main, load]),
    ] {
        let stack = builder.calls(calls);
        builder.blocks(Domain::Native, stack, 0, size, 1);
    }
    let path = builder.save(dir.path(), "a.snap.zst");
    (dir, path.to_str().unwrap().to_string())
}

fn shown(path: &str, arguments: &[&str]) -> String {
    let output = report(&[&[path], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

/// The tracebacks, each with its bytes: functions from the oldest to the most recent.
fn stacks(path: &str, arguments: &[&str]) -> Vec<(String, u64)> {
    let options = ["--by", "traceback", "--format", "json"];
    let report: Value = serde_json::from_str(&shown(path, &[arguments, &options].concat())).unwrap();
    let row = |row: &Value| {
        let frames = row["traceback"].as_array().unwrap().iter();
        let names: Vec<&str> = frames.map(|frame| frame["function"].as_str().unwrap()).collect();
        (names.join(" "), row["size"].as_u64().unwrap())
    };
    let rows: Vec<_> = report["stats"].as_array().unwrap().iter().map(row).collect();
    assert_eq!(report["total"]["size"], rows.iter().map(|row| row.1).sum::<u64>(), "the total is of what is chosen");
    rows
}

#[test]
fn stacks_are_chosen_by_any_of_their_frames() {
    let (_dir, path) = service();
    let sizes = |arguments: &[&str]| stacks(&path, arguments).iter().map(|row| row.1).collect::<Vec<_>>();
    assert_eq!(sizes(&["--focus", "parse"]), [1000, 200], "a function in the middle");
    assert_eq!(sizes(&["--focus", "json.py"]), [1000, 200], "a file");
    assert_eq!(sizes(&["--focus", "^lo"]), [30, 4]);
    assert_eq!(sizes(&["--focus", "^log$", "--focus", "^load$"]), [30, 4], "either");
    assert_eq!(sizes(&["--ignore", "walk"]), [30, 4]);
    assert_eq!(sizes(&["--ignore", "walk", "--ignore", "load"]), [30], "neither");
    assert_eq!(sizes(&["--focus", "serve", "--ignore", "/lib/*.py"]), [30]);
    assert_eq!(sizes(&["--focus", "Parse"]), Vec::<u64>::new(), "case counts");
    let nothing = report(&[&path, "--focus", "nothing"]);
    assert!(stderr(&nothing).contains("the filters match nothing of 1234 B in 4 blocks"), "{}", stderr(&nothing));
}

#[test]
fn trimmed_stacks_begin_with_the_oldest_match() {
    let (_dir, path) = service();
    let expected = [("parse walk".to_string(), 1000), ("parse walk walk walk".to_string(), 200)];
    assert_eq!(stacks(&path, &["--trim", "/lib/"]), expected);
    let expected = [("walk".to_string(), 1000), ("walk walk walk".to_string(), 200)];
    assert_eq!(stacks(&path, &["--trim", "walk"]), expected);
    let tree = shown(&path, &["--trim", "serve", "--by", "tree"]);
    assert!(tree.contains("  - serve (/app/web.py:2)\n") && !tree.contains("main"), "{tree}");
    // The blame is of what is left.
    let lines = shown(&path, &["--trim", "log", "--blame", "own"]);
    assert!(lines.contains("#1: /app/log.py:5: 30 B in 1 block, 100 %, log\n"), "{lines}");
}

#[test]
fn a_folded_tree_has_each_cycle_once_with_its_passes() {
    let (_dir, path) = service();
    let tree = |options: &[&str]| {
        let text = shown(&path, &[&["--by", "tree", "--focus", "walk"], options].concat());
        text.lines().skip_while(|line| !line.starts_with("Call")).map(str::to_string).collect::<Vec<_>>()
    };
    let plain = tree(&[]);
    assert_eq!(plain.iter().filter(|line| line.contains(" walk (")).count(), 3, "{plain:?}");
    assert!(plain.contains(&"Recursion: --fold-recursion shows each cycle once".to_string()), "{plain:?}");
    let folded = tree(&["--fold-recursion"]);
    let walk = "1200 B  100 %       2    walk (/lib/json.py:4), up to 3 times";
    assert_eq!(folded.iter().filter(|line| line.contains("walk")).collect::<Vec<_>>(), [walk]);
    assert!(!folded.iter().any(|line| line.starts_with("Recursion")), "{folded:?}");
    assert!(!tree(&["--ignore", "walk"]).iter().any(|line| line.starts_with("Recursion")));
    let callers = shown(&path, &["--by", "tree", "--inverted", "--fold-recursion", "--focus", "walk"]);
    assert!(callers.contains("- walk (/lib/json.py:4), up to 3 times\n"), "{callers}");

    let stacks = shown(&path, &["--format", "folded", "--fold-recursion"]);
    assert!(stacks.contains("main;serve;parse;walk 1200\n"), "{stacks}");
    // The page folds by itself: the option is the first state of a switch.
    let page = shown(&path, &["--format", "html", "--fold-recursion"]);
    assert!(page.contains("\"fold\":true"), "{page}");
    let json = shown(&path, &["--by", "tree", "--fold-recursion", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let passes = json["stats"].as_array().unwrap().iter().map(|row| row["passes"].as_u64());
    assert_eq!(passes.collect::<Vec<_>>(), [1, 1, 1, 3, 1, 1].map(Some));
    let csv = shown(&path, &["--by", "tree", "--fold-recursion", "--format", "csv"]);
    assert!(csv.starts_with("size,count,own_size,own_count,depth,passes,others,filename"), "{csv}");
    assert!(csv.contains("\n1200,2,1200,2,3,3,,/lib/json.py,4,walk,/lib/json.py\n"), "{csv}");
}
