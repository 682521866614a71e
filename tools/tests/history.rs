//! Tests of `report --at TIME` and `report --since TIME`: the memory at an instant of the history,
//! and what has changed between two instants.

mod support;

use heapline_shared_format::snapshot::history::{Change, Changes, DomainStep, Mark, Step, USER_MARK};
use heapline_shared_format::snapshot::{Birth, Domain, End, History, Origin, Sampled};
use serde_json::Value;
use std::path::Path;
use support::page::Page;
use support::scene::{report, stderr, stdout};
use support::snapshot::Builder;
use tempfile::{TempDir, tempdir};

/// 2026-11-28T02:00:00Z, an hour later at the place of the recording.
const BEGUN: u64 = 1_795_831_200_000;
const MINUTE: u64 = 60_000;

fn change(stack: Option<u32>, size: i64, count: i64) -> Change {
    Change { domain: Domain::Native, stack, size, count, allocated_bytes: size.unsigned_abs(), allocs: 1 }
}

/// A step with these changes. `current` is the sum of all changes so far.
fn step(end: u64, current: u64, blocks: u64, greatest: u64, changes: &[Change]) -> Step {
    let (allocs, frees) = (changes.len() as u64, 0);
    let row = DomainStep { domain: Domain::Native, current, blocks, greatest, allocs, frees, allocated_bytes: 10 };
    Step { end, domains: vec![row], process: None, changes: Changes::encode(changes) }
}

/// Bytes and blocks at the ends of the steps:
///
/// | End | a | b | c | smaller ones |
/// | --- | --- | --- | --- | --- |
/// | 03:00 | 0 | 0 | 0 | 0 |
/// | 03:01 | 1000 in 10 | 500 in 5 | 0 | 70 in 7 |
/// | 03:03 | 400 in 4 | 500 in 5 | 0 | 90 in 9 |
/// | 03:13 | 0 | 900 in 9 | 30 in 1 | 90 in 9 |
fn history(stacks: [u32; 3]) -> History {
    let [a, b, c] = stacks.map(Some);
    let mark = |at, kind: &str, text: &str| Mark { at, kind: kind.to_string(), text: text.to_string() };
    History {
        begun: BEGUN,
        utc_offset: 3600,
        apart: 4096,
        steps: vec![
            step(0, 0, 0, 0, &[]),
            step(MINUTE, 1570, 22, 2000, &[change(None, 70, 7), change(a, 1000, 10), change(b, 500, 5)]),
            step(3 * MINUTE, 990, 18, 1600, &[change(None, 20, 2), change(a, -600, -6)]),
            step(13 * MINUTE, 1020, 19, 1100, &[change(a, -400, -4), change(b, 400, 4), change(c, 30, 1)]),
        ],
        marks: vec![mark(0, "start", ""), mark(MINUTE, USER_MARK, "deploy 42")],
    }
}

fn scene() -> (TempDir, String) {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let stacks = [0xa000, 0xb000, 0xc000].map(|address| builder.stack(&[0x1000, address]));
    builder.blocks(Domain::Native, stacks[1], 0, 100, 9);
    builder.snapshot.history = Some(history(stacks));
    let path = builder.save(dir.path(), "app.snap.zst");
    (dir, path.to_str().unwrap().to_string())
}

fn shown(path: &str, arguments: &[&str]) -> String {
    let output = report(&[&[path], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

fn json(path: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&shown(path, &[arguments, &["--format", "json", "--limit", "0"]].concat())).expect("JSON")
}

/// Bytes and blocks of each row, by the most recent function.
fn rows(report: &Value) -> Vec<(String, i64, i64)> {
    let row = |row: &Value| {
        let frame = row["traceback"].as_array().unwrap().last().unwrap();
        (frame["function"].as_str().unwrap().to_string(), row["size"].as_i64().unwrap(), row["count"].as_i64().unwrap())
    };
    report["stats"].as_array().unwrap().iter().map(row).collect()
}

const SMALLER: &str = "each below 1/4096 of the whole";

#[test]
fn the_memory_at_a_time_is_that_at_the_end_of_the_step_with_the_time() {
    let (_dir, path) = scene();
    let own = |rows: &[(&str, i64, i64)]| -> Vec<_> {
        rows.iter().map(|&(name, size, count)| (name.to_string(), size, count)).collect()
    };
    let first = own(&[("0xa000", 1000, 10), ("0xb000", 500, 5), (SMALLER, 70, 7)]);
    let second = own(&[("0xb000", 500, 5), ("0xa000", 400, 4), (SMALLER, 90, 9)]);
    let last = own(&[("0xb000", 900, 9), (SMALLER, 90, 9), ("0xc000", 30, 1)]);
    for (time, expected) in [
        ("03:01", &first),
        ("+1m", &first),
        ("mark:deploy", &first),
        ("-12m", &first),
        ("03:02", &second),
        ("2026-11-28T02:01:00.001Z", &second),
        ("-10m", &second),
        ("03:10", &last),
        ("-0s", &last),
    ] {
        let report = json(&path, &["--at", time, "--by", "traceback"]);
        assert_eq!(&rows(&report), expected, "{time}");
        assert_eq!(report["at"], "instant");
        assert_eq!(report["total"]["size"], report["domains"][0]["current"], "{time}: to the byte");
        assert_eq!(report["total"]["count"], report["domains"][0]["blocks"]);
    }
    let report = json(&path, &["--at", "03:02"]);
    assert_eq!(report["instant"]["time"], "2026-11-28T03:03:00+01:00");
    assert_eq!(report["instant"]["step_begin"], "2026-11-28T03:01:00+01:00");
    assert_eq!(report["instant"]["step_milliseconds"], 2 * MINUTE);
    assert_eq!(report["domains"][0]["peak"], 2000, "so far");
    assert_eq!(report["domains"][0]["allocs"], 5);
    assert!(rows(&json(&path, &["--at", "+0s"])).is_empty(), "nothing at the begin");
}

#[test]
fn the_text_names_the_step_that_answers() {
    let (_dir, path) = scene();
    let text = shown(&path, &["--at", "03:02"]);
    assert!(text.contains("As of 2026-11-28T03:03:00+01:00, the end of a step of 2 min\n"), "{text}");
    assert!(text.contains("native: current 990 B in 18 blocks, peak 2000 B;"), "{text}");
    assert!(text.contains("Top 2 lines: native memory live at 2026-11-28T03:03:00+01:00\n"), "{text}");
    assert!(text.contains("#2: (smaller ones):0: 90 B in 9 blocks, 9.1 %, each below 1/4096 of the whole\n"), "{text}");
    let begin = shown(&path, &["--at", "+0s"]);
    assert!(begin.contains("As of 2026-11-28T03:00:00+01:00, the begin of the history\n"), "{begin}");
    assert!(!begin.contains("NO RECORDS"), "{begin}");
    let kept = shown(&path, &["--at", "03:02", "--filter", "(smaller*"]);
    assert!(kept.contains("Total allocated size: 90 B\n"), "{kept}");
}

#[test]
fn a_range_shows_what_has_grown_shrunk_come_and_gone() {
    let (_dir, path) = scene();
    let report = json(&path, &["--since", "03:01", "--by", "traceback"]);
    let stats = report["stats"].as_array().unwrap();
    let changes: Vec<_> = stats.iter().map(|row| (row["size_diff"].as_i64().unwrap(), &row["change"])).collect();
    assert_eq!(changes, [(-1000, &"gone".into()), (400, &"grown".into()), (30, &"new".into()), (20, &"grown".into())]);
    assert_eq!(report["since"]["time"], "2026-11-28T03:01:00+01:00");
    assert_eq!(report["instant"]["time"], "2026-11-28T03:13:00+01:00");

    let text = shown(&path, &["--since", "mark:deploy", "--until", "-10m"]);
    assert!(text.contains("As of 2026-11-28T03:03:00+01:00, the end of a step of 2 min\n"), "{text}");
    assert!(text.contains("Compared with 2026-11-28T03:01:00+01:00, the end of a step of 60 s\n"), "{text}");
    assert!(text.contains("\n1 grown, 1 shrunk, 0 new, 0 gone\n"), "{text}");
    assert!(text.contains("Total allocated size: 990 B (-580 B)\n"), "{text}");
    let by_function = shown(&path, &["--since", "+0s", "--by", "function", "--format", "csv"]);
    let lines: Vec<&str> = by_function.lines().collect();
    assert_eq!(lines[..2], ["size,count,size_diff,count_diff,function", "900,9,900,9,0xb000"]);
}

#[test]
fn what_the_history_does_not_know_is_said_in_a_line() {
    let (dir, path) = scene();
    let failure = |path: &str, arguments: &[&str], status: i32| {
        let output = report(&[&[path], arguments].concat());
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1);
        stderr(&output)
    };
    for (arguments, said) in [
        (&["--at", "02:00"][..], "from 2026-11-28T03:00:00+01:00 to 2026-11-28T03:13:00+01:00"),
        (&["--at", "mark:release"], "its last marks are deploy 42, start"),
        (&["--since", "03:10"], "both are in one step"),
        (&["--since", "-1m", "--until", "-12m"], "is not behind --since"),
    ] {
        let text = failure(&path, arguments, 1);
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
    let without = Builder::new(None).save(dir.path(), "old.snap.zst");
    let text = failure(without.to_str().unwrap(), &["--at", "-1m"], 1);
    assert!(text.contains("process 4711 has no history"), "{text}");
    failure(&path, &["--at", "soon"], 2);
}

/// Each process of a tree has its own history. At an instant before the begin of a process, or
/// behind its end, the process has nothing.
#[test]
fn a_tree_is_summed_up_at_one_instant() {
    let dir = tempdir().unwrap();
    let process = |folder: &Path, name: &str, pid: u32, parent: Option<u32>, begun: u64| {
        let mut builder = Builder::new(None);
        let stacks = [0xa000, 0xb000, 0xc000].map(|address| builder.stack(&[0x1000, address]));
        builder.snapshot.meta.pid = pid;
        builder.snapshot.meta.end = if parent.is_some() { End::Exited } else { End::Running };
        builder.snapshot.history = Some(History { begun, ..history(stacks) });
        builder.snapshot.origin = parent.map(|parent| Origin { parent, birth: Birth::Exec, inherited: None });
        builder.save(folder, name);
    };
    let folder = dir.path().join("run");
    std::fs::create_dir(&folder).unwrap();
    process(dir.path(), "run.snap.zst", 10, None, BEGUN);
    process(&folder, "heapline-a-11.snap.zst", 11, Some(10), BEGUN - 12 * MINUTE);
    process(&folder, "heapline-b-12.snap.zst", 12, Some(10), BEGUN + 2 * MINUTE);
    let size = |time: &str| {
        let output = report(&["--tree", folder.to_str().unwrap(), "--at", time, "--format", "json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(report["domains"][0]["current"], report["total"]["size"]);
        report["total"]["size"].as_i64().unwrap()
    };
    assert_eq!(size("03:01"), 1570 + 1020, "the third has not begun");
    assert_eq!(size("03:03"), 990 + 1570, "the second has ended");
}

/// A history of two hours in steps of a minute: one stack leaks, and the memory of another swings.
#[test]
fn what_grows_whatever_the_load_is_named_with_its_speed() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let [leak, load, _] = [0xa000, 0xb000, 0xc000].map(|address| builder.stack(&[0x1000, address]));
    builder.blocks(Domain::Native, leak, 0, 1000, 120);
    let mut before = 0;
    let of_minute = |minute: u64| {
        let swing = (minute * 7919 % 13).cast_signed() * 1_000_000;
        let changes =
            [change(Some(leak), 1000, 1), change(Some(load), swing - std::mem::replace(&mut before, swing), 0)];
        step(minute * MINUTE, 0, 0, 0, &changes)
    };
    let steps: Vec<Step> = (0..=120).map(of_minute).collect();
    builder.snapshot.history = Some(History { steps, ..history([0, 1, 2]) });
    let path = builder.save(dir.path(), "leak.snap.zst");
    let path = path.to_str().unwrap();
    let report = json(path, &["--leaks", "--by", "traceback"]);
    assert_eq!(rows(&report), [("0xa000".to_string(), 121_000, 121)]);
    let growth = &report["stats"][0]["growth"];
    assert_eq!(growth["bytes_per_hour"], 60_000.0);
    assert!(growth["certainty"].as_f64().unwrap() > 0.999);
    assert_eq!(growth["series"].as_array().unwrap().len(), 24);
    let text = shown(path, &["--leaks", "--by", "function"]);
    assert!(text.contains("\n1 function grows: native memory live at 2026-11-28T05:00:00+01:00\n"), "{text}");
    assert!(text.contains("\n#1: 0xa000: 118 KiB in 121 blocks"), "{text}");
    assert!(text.contains("\n    +58.6 KiB an hour, 99.9 % sure  |\u{2581}"), "{text}");
    let csv = shown(path, &["--leaks", "--by", "function", "--format", "csv"]);
    assert!(csv.starts_with("size,count,bytes_per_hour,certainty,function\n121000,121,60000,1.0000,0xa000\n"), "{csv}");
    let (_dir, quiet) = scene();
    let nothing = report_of(&quiet, &["--leaks"]);
    assert!(nothing.status.success() && stderr(&nothing).contains("nothing grows for sure"), "{}", stderr(&nothing));
}

/// Two lines leak, one of them in a library that is known to.
#[test]
fn known_leaks_are_left_out_and_counted() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let main = ("/app/main.py", "main", 1);
    let own = builder.calls(&[main, ("/app/cache.py", "remember", 7)]);
    let known = builder.calls(&[main, ("/lib/pool.py", "grow", 9), ("/lib/pool.py", "take", 11)]);
    let quiet = builder.calls(&[main, ("/lib/pool.py", "grow", 9), ("/lib/pool.py", "once", 13)]);
    builder.blocks(Domain::Native, own, 0, 1000, 120);
    let of_minute = |minute: u64| {
        let once = change(Some(quiet), if minute == 0 { 5000 } else { 0 }, i64::from(minute == 0));
        let changes = [change(Some(own), 1000, 1), change(Some(known), 300, 3), once];
        step(minute * MINUTE, 1, 1, 1, &changes)
    };
    let steps: Vec<Step> = (0..=120).map(of_minute).collect();
    builder.snapshot.history = Some(History { steps, ..history([0, 1, 2]) });
    let path = builder.save(dir.path(), "leak.snap.zst");
    let path = path.to_str().unwrap();
    let file = dir.path().join("known.txt");
    let lines = |report: &Value| {
        let line = |row: &Value| row["traceback"][0]["lineno"].as_u64().unwrap();
        report["stats"].as_array().unwrap().iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(lines(&json(path, &["--leaks"])), [7, 11]);
    // The function is not that of the row, but of a caller.
    for pattern in ["grow", "/lib/pool.py", "^gr*w$"] {
        std::fs::write(&file, format!("# known\nleak:nothing\nleak:{pattern}\n")).unwrap();
        let options = ["--leaks", "--suppressions", file.to_str().unwrap()];
        let report = json(path, &options);
        assert_eq!(lines(&report), [7], "{pattern}");
        let expected = serde_json::json!([{"pattern": pattern, "groups": 1, "size": 36_300, "count": 363}]);
        assert_eq!(report["suppressed"], expected, "only what grows");
        let text = shown(path, &options);
        let line = format!("\nSuppressed by leak:{pattern}: 1 line, 35.4 KiB in 363 blocks\n");
        assert!(text.contains(&line), "{text}");
        let csv = shown(path, &[&options[..], &["--format", "csv"]].concat());
        assert!(csv.starts_with(&format!("# Suppressed by leak:{pattern}: 1 line")), "{csv}");
    }
    std::fs::write(&file, "leak:main\n").unwrap();
    let all = report_of(path, &["--leaks", "--suppressions", file.to_str().unwrap()]);
    assert!(stdout(&all).contains("\nSuppressed by leak:main: 2 lines, 154 KiB in 484 blocks\n"), "{}", stdout(&all));
    std::fs::write(&file, "leak:main\nrace:main\n").unwrap();
    let wrong = report_of(path, &["--leaks", "--suppressions", file.to_str().unwrap()]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("known.txt, line 2: "), "{}", stderr(&wrong));
}

fn report_of(path: &str, arguments: &[&str]) -> std::process::Output {
    report(&[&[path], arguments].concat())
}

#[test]
fn a_history_of_samples_has_intervals() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let stacks = [0xa000, 0xb000, 0xc000].map(|address| builder.stack(&[0x1000, address]));
    builder.snapshot.meta.sample_interval = 1 << 10;
    builder.snapshot.sampled = stacks.map(|stack| Sampled { stack, interval: 1 << 10, size: 64 }).to_vec();
    builder.snapshot.history = Some(history(stacks));
    let path = builder.save(dir.path(), "app.snap.zst");
    let report = json(path.to_str().unwrap(), &["--at", "03:01", "--by", "traceback"]);
    for row in report["stats"].as_array().unwrap() {
        let interval = row["size_interval"].as_array().expect("an interval");
        let bytes = |index: usize| interval[index].as_u64().unwrap();
        assert!(bytes(0) < bytes(1), "{row}");
    }
    assert_eq!(report["total"]["size"], 1570);
}

/// The page has the whole history: the sum of the changes up to a step is the memory at its end.
#[test]
fn a_page_has_the_history() {
    let (_dir, path) = scene();
    let page = |arguments: &[&str]| Page::of(&shown(&path, &[&["--format", "html"], arguments].concat()));
    let all = page(&[]);
    let [steps, sizes, counts] = ["step.changes", "change.size", "change.count"].map(|name| all.numbers(name));
    let mut end = 0;
    let held = steps.iter().map(|changes| {
        end += usize::try_from(*changes).unwrap();
        (sizes[..end].iter().sum(), counts[..end].iter().sum())
    });
    assert_eq!(held.collect::<Vec<(i128, i128)>>(), [(0, 0), (1570, 22), (990, 18), (1020, 19)]);
    assert_eq!(all.numbers("step.end"), [0, 1, 3, 13].map(|minutes| minutes * i128::from(MINUTE)));
    assert_eq!(all.numbers("sum.greatest"), [0, 2000, 1600, 1100]);
    assert!(all.texts("texts").contains(&"(smaller ones)".to_owned()));
    let history = &all.head["histories"][0];
    assert_eq!((&history["begun"], &history["utc_offset"]), (&BEGUN.into(), &3600.into()));
    assert_eq!(history["marks"][1]["text"], "deploy 42");
    assert_eq!((&all.head["instant"], &all.head["since"]), (&Value::Null, &Value::Null));

    let at = page(&["--at", "03:02"]);
    assert_eq!((&at.head["instant"], &at.head["since"]), (&(BEGUN + 3 * MINUTE).into(), &Value::Null));
    assert_eq!(at.numbers("change.size"), sizes, "the page shows another instant first, of the same data");
    let range = page(&["--since", "03:01", "--until", "03:03"]).head;
    assert_eq!((&range["since"], &range["instant"]), (&(BEGUN + MINUTE).into(), &(BEGUN + 3 * MINUTE).into()));
    for (bound, status) in [("29", 3), ("30", 0)] {
        let arguments = [&path, "--since", "03:03", "--format", "html", "--fail-above", bound];
        assert_eq!(report(&arguments).status.code(), Some(status), "{bound}: 990 B have become 1020 B");
    }
}
