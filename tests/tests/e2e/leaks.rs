//! Lost blocks, found by `ctl PID leaks` in a running process. The victim knows what it loses, and
//! valgrind says the same.

use crate::support::stepped::{Stepped, detach};
use crate::support::trace::{ctl, ctl_ok};
use crate::support::victim::{self, line_of};
use crate::support::{Running, Trace, has, stdout_of, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Command;

/// Bytes and blocks.
type Sum = (u64, u64);

fn sum(value: &Value) -> Sum {
    let number = |field: &str| value[field].as_u64().unwrap_or_else(|| panic!("{field} in {value}"));
    (number("bytes"), number("blocks"))
}

/// Lost blocks by the line of the victim: direct, indirect, held.
type Lines = BTreeMap<u64, [Sum; 3]>;

fn scan(pid: i32, options: &[&str]) -> Value {
    let text = ctl_ok(pid, &[&["leaks", "--format", "json"], options].concat());
    serde_json::from_str(&text).expect("JSON")
}

/// Returns the lost blocks of the lines of a source file.
fn lines(leaks: &Value, source: &str) -> Lines {
    let stacks = leaks["stacks"].as_array().expect("a list");
    let row = |stack: &Value| {
        let frames = stack["traceback"].as_array().expect("a list");
        let is_own = |frame: &&Value| frame["filename"].as_str().is_some_and(|file| file.ends_with(source));
        let frame = frames.iter().rev().find(is_own).unwrap_or_else(|| panic!("another leak: {stack}"));
        let sums = ["direct", "indirect", "held"].map(|field| sum(&stack[field]));
        (frame["lineno"].as_u64().expect("a line"), sums)
    };
    stacks.iter().map(row).collect()
}

fn program() -> PathBuf {
    victim::build("leaks.c", &["-O1", "-pthread"])
}

/// Starts the traced victim, and waits until all is lost.
fn start(trace: Trace) -> (Running, i32) {
    let mut running = trace.spawn();
    let mut line = String::new();
    let mut stdout = BufReader::new(running.child.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("the victim speaks");
    assert_eq!(line, "ready 1\n");
    running.child.stdout = Some(stdout.into_inner());
    let pid = running.target_pid();
    wait_for("the aggregator", || ctl(pid, &["stats"]).status.success().then_some(()));
    (running, pid)
}

fn expected() -> Lines {
    let line = |marker: &str| line_of("leaks.c", marker);
    [
        (line("// LINE list"), [(104, 1), (936, 9), (936, 9)]),
        (line("// LINE circle"), [(208, 1), (416, 2), (416, 2)]),
        (line("// LINE stale"), [(304, 1), (0, 0), (0, 0)]),
        (line("// LINE large"), [(1_000_000, 1), (0, 0), (0, 0)]),
    ]
    .into()
}

const DIRECT: Sum = (1_000_616, 4);
const INDIRECT: Sum = (1_352, 11);

#[test]
fn one_pass_with_all_threads_stopped_finds_exactly_what_is_lost() {
    let (mut running, pid) = start(Trace::of(program()));
    let leaks = scan(pid, &["--stop"]);
    assert_eq!(lines(&leaks, "leaks.c"), expected());
    assert_eq!((sum(&leaks["direct"]), sum(&leaks["indirect"])), (DIRECT, INDIRECT));
    assert_eq!((&leaks["passes"], &leaks["partial"], &leaks["pid"]), (&1.into(), &Value::Array(vec![]), &pid.into()));
    assert!(leaks["stopped_us"].as_u64().is_some_and(|us| us > 0), "{leaks}");
    let text = ctl_ok(pid, &["leaks", "--stop"]);
    assert!(text.contains("\none pass with all threads stopped for "), "{text}");
    let row =
        "#4: 104 B in 1 block directly lost and 936 B in 9 blocks held by lost blocks only, holding 936 B in 9 blocks";
    assert!(text.contains(row), "{text}");
    assert!(text.contains("lost: 977 KiB in 4 blocks directly, 1352 B in 11 blocks indirectly; of "), "{text}");
    // The threads go on, as many times as they were stopped.
    drop(running.child.stdin.take());
    running.finish().expect_code(0).report(&[]).assert_exact();
}

#[test]
fn passes_while_the_threads_run_find_the_same() {
    let (mut running, pid) = start(Trace::of(program()));
    let leaks = scan(pid, &[]);
    let mut found = lines(&leaks, "leaks.c");
    // Registers are not read: only a register holds this block.
    found.retain(|_, [direct, ..]| *direct != (407, 1));
    assert_eq!(found, expected());
    assert_eq!((&leaks["passes"], &leaks["stopped_us"]), (&3.into(), &Value::Null));
    drop(running.child.stdin.take());
    running.finish().expect_code(0).report(&[]).assert_exact();
}

#[test]
fn valgrind_finds_the_same_bytes() {
    if !has("valgrind") {
        return;
    }
    let mut command = Command::new("valgrind");
    let output = command.arg("--leak-check=full").arg(program()).arg("ends").output().expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr).replace(',', "");
    let lost = |kind: &str| -> Sum {
        let line = text.lines().find_map(|line| line.split_once(kind)).unwrap_or_else(|| panic!("no {kind}\n{text}")).1;
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
        (numbers.next().expect("bytes"), numbers.next().expect("blocks"))
    };
    assert_eq!((lost("definitely lost:"), lost("indirectly lost:")), (DIRECT, INDIRECT));
}

#[test]
fn what_is_not_known_is_said_and_holds_what_is_known() {
    let mut victim = Stepped::start(&mut Command::new(victim::build("lost.c", &["-O1"])));
    // A block from before the attach holds a block from after the attach.
    victim.step(b'o');
    let snapshot = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    victim.steps("hl");
    let leaks = scan(victim.pid(), &["--stop"]);
    assert_eq!(lines(&leaks, "lost.c"), [(line_of("lost.c", "// LINE lost"), [(5000, 1), (0, 0), (0, 0)])].into());
    assert!(leaks["partial"][0].as_str().is_some_and(|why| why.contains("before the attach")), "{leaks}");
    assert!(ctl_ok(victim.pid(), &["leaks", "--stop"]).contains("\npartial: blocks from before the attach"));
    detach(aggregator);
    assert_eq!(victim.finish(), 0);
    let (mut running, pid) = start(Trace::of(program()).option("--sample").option("1"));
    let leaks = scan(pid, &["--stop"]);
    assert!(leaks["partial"][0].as_str().is_some_and(|why| why.starts_with("one in 1 B")), "{leaks}");
    drop(running.child.stdin.take());
    running.finish().expect_code(0);
}

#[test]
fn an_interpreter_has_lost_nothing() {
    if !has("python3") {
        return;
    }
    let python = stdout_of(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]));
    let program = "import json, re, sys, threading, collections\n\
                   kept = [bytes(n % 3000) for n in range(20000)]\n\
                   text = json.dumps({str(n): [n] * (n % 50) for n in range(2000)})\n\
                   read = json.loads(text)\n\
                   threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()\n\
                   print('ready', flush=True)\n\
                   sys.stdin.read()\n";
    let mut running = Trace::of(python.trim()).args(["-c", program]).spawn();
    let mut line = String::new();
    let mut stdout = BufReader::new(running.child.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("it speaks");
    running.child.stdout = Some(stdout.into_inner());
    let leaks = scan(running.target_pid(), &["--stop"]);
    let (lost, live) = (sum(&leaks["direct"]), sum(&leaks["live"]));
    assert!(live.1 > 10_000 && lost.0 < live.0 / 1000, "lost {lost:?} of {live:?}: {leaks}");
    drop(running.child.stdin.take());
    running.finish().expect_code(0);
}
