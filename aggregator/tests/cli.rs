//! The built program: exit statuses, messages of a single line, and files present or absent
//! afterwards.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

const AGGREGATOR: &str = env!("CARGO_BIN_EXE_aggregator");

fn aggregator(folder: &TempDir, arguments: &[&str]) -> Output {
    Command::new(AGGREGATOR).args(arguments).current_dir(folder).output().expect("the program runs")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Returns the single line of an error, and the exit status.
fn failure(output: &Output) -> (String, Option<i32>) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "one line: {text:?}");
    assert!(output.stdout.is_empty());
    (text, output.status.code())
}

fn files(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn snapshot(path: &Path) -> heapline_shared_format::snapshot::Snapshot {
    let file = fs::File::open(path).expect("a snapshot");
    heapline_shared_format::snapshot::read(file).expect("a valid snapshot")
}

#[test]
fn bad_input_is_one_line_and_the_right_status() {
    let folder = folder();
    fs::create_dir(folder.path().join("d")).expect("created");
    fs::write(folder.path().join("not-executable"), "").expect("written");
    for (arguments, status, part) in [
        (&["run", "--", "no-such-command-here"][..], 127, "No such file"),
        (&["run", "--", "./not-executable"], 126, "Permission denied"),
        (&["run", "--no-follow", "-o", "d", "--", "true"], 125, "is a directory"),
        (&["run", "-o", "missing/file.zst", "--", "true"], 125, "No such file"),
        (&["run", "-o", "missing/file", "--", "true"], 125, "No such file"),
        (&["run", "--nframe", "0", "--", "true"], 2, "1..=65535"),
        (&["run"], 2, "COMMAND"),
        (&["--attach", "4194999"], 1, "no process"),
        (&["ctl", "4194999", "stats"], 1, "no aggregator traces process"),
        (&["collector", "-o", "missing/file"], 1, "cannot write the collector"),
    ] {
        let (text, found) = failure(&aggregator(&folder, arguments));
        assert_eq!(found, Some(status), "{arguments:?}: {text}");
        assert!(text.starts_with("heapline: ") && text.contains(part), "{arguments:?}: {text}");
    }
    assert_eq!(files(&folder), ["d", "not-executable"]);
}

#[test]
fn a_command_runs_as_if_alone() {
    let folder = folder();
    let script = "cat; echo to-stderr >&2; exit 7";
    let mut child = Command::new(AGGREGATOR)
        .args(["run", "-o", "s.zst", "--", "sh", "-c", script])
        .current_dir(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"through\n").expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"through\n"[..], Some(7)));
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("to-stderr"));
    let last = lines.next().expect("the final line");
    assert!(last.contains("snapshot: s.zst; read it with: ") && last.ends_with("report s.zst"), "{last}");
    let meta = snapshot(&folder.path().join("s.zst")).meta;
    assert_eq!(meta.exit_status, Some(7));
    assert!(meta.contradictions.is_empty() && meta.lost.is_empty());
}

#[test]
fn a_signal_that_ends_the_command_is_in_the_status_and_the_snapshot() {
    let folder = folder();
    let output = aggregator(&folder, &["run", "-o", "s.zst", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!((output.status.code(), output.status.signal()), (Some(137), None));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("heapline: killed by SIGKILL; peak ") && said.contains(" native; live "), "{said}");
    let meta = snapshot(&folder.path().join("s.zst")).meta;
    assert_eq!((meta.end, meta.exit_status), (heapline_shared_format::snapshot::End::Killed, Some(137)));
}

#[test]
fn the_environment_arrives_byte_for_byte() {
    let folder = folder();
    let variables = [("Z", "1"), ("LD_PRELOAD", "/lib/x86_64-linux-gnu/libm.so.6"), ("A", "2")];
    let run = |command: &mut Command| {
        let output = command.env_clear().envs(variables).current_dir(&folder).output().expect("it runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let alone = run(Command::new("/usr/bin/env").arg("-u").arg("NOTHING"));
    let traced = run(Command::new(AGGREGATOR).args(["run", "-o", "s.zst", "--", "/usr/bin/env", "-u", "NOTHING"]));
    assert_eq!(traced, alone);
}

#[test]
fn exec_leaves_one_snapshot_per_program() {
    let folder = folder();
    aggregator(&folder, &["run", "-o", "s.zst", "--", "sh", "-c", "exec sh -c 'exec sleep 0.2'"]);
    assert_eq!(files(&folder), ["s.zst", "s.zst.exec1", "s.zst.exec2"]);
    let last = snapshot(&folder.path().join("s.zst")).meta;
    assert!(last.executable.ends_with("/sleep"), "{}", last.executable);
    let first = snapshot(&folder.path().join("s.zst.exec1")).meta;
    assert_eq!(first.command, "sh -c exec sh -c 'exec sleep 0.2'");
}

#[test]
fn nothing_recorded_is_said_loudly_with_the_reason() {
    let folder = folder();
    let output = Command::new(AGGREGATOR)
        .args(["run", "-o", "s.zst", "--", "sh", "-c", "true"])
        .env("HEAPLINE_DISABLE", "1")
        .current_dir(&folder)
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("NOTHING WAS RECORDED: HEAPLINE_DISABLE=1 is set"), "{text}");
    assert_eq!(snapshot(&folder.path().join("s.zst")).meta.notes.len(), 1);
}

#[test]
fn an_old_snapshot_stays_when_the_new_one_cannot_be_written() {
    let folder = folder();
    fs::write(folder.path().join("s.zst"), "old").expect("written");
    let script = "ulimit -f 0; exec \"$0\" run -o s.zst -- true";
    let limited = Command::new("sh").args(["-c", script, AGGREGATOR]).current_dir(&folder).output().expect("it runs");
    // The arena itself exceeds the limit. This is found before the start.
    let (text, status) = failure(&limited);
    assert_eq!(status, Some(125), "{text}");
    assert!(text.contains("ulimit -f"), "{text}");
    assert_eq!(fs::read_to_string(folder.path().join("s.zst")).expect("there"), "old");
}

/// Starts a process with the idle collector. The process prints a line, then reads standard input
/// until the end.
fn idle_target(folder: &TempDir) -> Child {
    let library = folder.path().join("collector.so");
    assert!(aggregator(folder, &["collector", "-o", "collector.so"]).status.success());
    let script = "echo ready; while read line; do :; done";
    let mut child = Command::new("bash")
        .args(["-c", script])
        .env("LD_PRELOAD", library)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn an_idle_process_is_attached_asked_and_left() {
    let folder = folder();
    let mut target = idle_target(&folder);
    let pid = target.id().to_string();
    let attached = Command::new(AGGREGATOR)
        .args(["--attach", &pid, "-o", "s.zst"])
        .current_dir(&folder)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let ctl = |arguments: &[&str]| {
        let mut all = vec!["ctl", &pid];
        all.extend(arguments);
        aggregator(&folder, &all)
    };
    let begun = std::time::Instant::now();
    while !ctl(&["stats"]).status.success() {
        assert!(begun.elapsed().as_secs() < 20, "the socket is not served");
    }
    let stats: serde_json::Value =
        serde_json::from_slice(&ctl(&["stats", "--format", "json"]).stdout).expect("valid JSON");
    assert_eq!(stats["snapshot"]["pid"].to_string(), pid);
    assert_eq!((&stats["snapshot"]["mode"], &stats["domains"][0]["domain"]), (&"exact".into(), &"native".into()));
    assert!(stats["snapshot"].get("end").is_none());
    let (text, status) = failure(&aggregator(&folder, &["--attach", &pid]));
    assert_eq!(status, Some(1));
    assert!(text.contains(&format!("traced by aggregator {}", attached.id())), "{text}");
    let (text, status) = failure(&ctl(&["lookup", "0x10"]));
    assert_eq!((status, text.contains("no live block begins at 0x10")), (Some(1), true));
    assert!(ctl(&["snapshot", "-o", "now.zst"]).status.success());
    assert!(ctl(&["reset-peak"]).status.success());
    assert!(ctl(&["clear-traces"]).status.success());
    assert!(ctl(&["detach"]).status.success());
    let output = attached.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let end = |name| snapshot(&folder.path().join(name)).meta.end;
    assert_eq!(end("now.zst"), heapline_shared_format::snapshot::End::Running);
    assert_eq!(end("s.zst"), heapline_shared_format::snapshot::End::Detached);
    assert!(target.try_wait().expect("asked").is_none(), "the target goes on");
    let again = aggregator(&folder, &["--attach", &pid, "--duration", "0.1", "-o", "again.zst"]);
    assert!(again.status.success(), "{again:?}");
    drop(target.stdin.take());
    assert!(target.wait().expect("it ends").success());
}
