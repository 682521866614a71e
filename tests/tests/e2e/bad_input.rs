//! Wrong use and bad files get the right exit status and a single line: problem, reason, and
//! remedy.

use crate::support::stepped::Background;
use crate::support::{Outcome, Trace, is_root, programs, skip, stdout_of, victim};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Checks that the exit status is `code` and standard error is a single line with all of `words`.
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "one line, not:\n{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
}

fn aggregator(args: &[&str]) -> Output {
    Command::new(&programs().aggregator).args(args).stdin(Stdio::null()).output().expect("it runs")
}

fn report(snapshot: &Path, args: &[&str]) -> Output {
    Command::new(&programs().report).arg(snapshot).args(args).output().expect("it runs")
}

fn snapshot() -> Outcome {
    Trace::of(victim::build("lines.c", &["-O0"])).run().expect_code(0)
}

#[test]
fn no_such_process() {
    let unused = std::fs::read_to_string("/proc/sys/kernel/pid_max").expect("Linux has a largest pid");
    let unused = unused.trim();
    assert_refused(&aggregator(&["--attach", unused]), 1, &[unused]);
    assert_refused(&aggregator(&["ctl", unused, "stats"]), 1, &[unused]);
}

#[test]
fn a_process_that_is_not_traced() {
    let sleeper = Background::of({
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        sleep
    });
    assert_refused(&aggregator(&["ctl", &sleeper.pid(), "stats"]), 1, &[&sleeper.pid()]);
}

#[test]
fn a_process_of_another_user() {
    if !is_root() {
        return;
    }
    // The user `nobody` must be able to reach the program, wherever the target folder is.
    let folder = tempfile::TempDir::new().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("our folder");
    let copy = folder.path().join("aggregator");
    std::fs::copy(&programs().aggregator, &copy).expect("a copy");
    let mut sleep = Command::new("sleep");
    sleep.arg("60");
    let sleeper = Background::of(sleep);
    for args in [vec!["--attach", &sleeper.pid()], vec!["ctl", &sleeper.pid(), "stats"]] {
        let mut command = Command::new(&copy);
        let output = command.args(&args).current_dir("/").uid(65_534).gid(65_534).output().expect("it runs");
        assert_refused(&output, 1, &[&sleeper.pid()]);
    }
}

#[test]
fn a_static_process_cannot_be_attached_to() {
    let program = victim::build("story.c", &["-O0", "-static"]);
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    let output = aggregator(&["--attach", &child.id().to_string()]);
    drop(child.stdin.take());
    child.wait().expect("it ends");
    assert_refused(&output, 1, &["static"]);
}

/// A complete 32-bit program: header, one segment, `exit(42)`.
fn elf32() -> Vec<u8> {
    let code = [0xb8, 1, 0, 0, 0, 0xbb, 42, 0, 0, 0, 0xcd, 0x80];
    let half = |n: u16| n.to_le_bytes().to_vec();
    let words = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
    let base = 0x0804_8000_u32;
    let size = 52 + 32 + 12;
    [
        vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [half(2), half(3)].concat(),
        words(&[1, base + 84, 52, 0, 0]),
        [half(52), half(32), half(1), half(40), half(0), half(0)].concat(),
        words(&[1, 0, base, base, size, size, 5, 0x1000]),
        code.to_vec(),
    ]
    .concat()
}

#[test]
fn a_32_bit_program() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let program = folder.path().join("exit42");
    std::fs::write(&program, elf32()).expect("written");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("our file");
    match Command::new(&program).status() {
        Ok(status) if status.code() == Some(42) => {}
        other => return skip(&format!("this kernel runs no 32-bit programs: {other:?}")),
    }
    let outcome = Trace::of(&program).run().expect_code(42);
    assert!(
        outcome.stderr().contains("NOTHING WAS RECORDED: ") && outcome.stderr().contains("32-bit"),
        "{}",
        outcome.stderr()
    );
}

#[test]
fn a_static_program() {
    let trace = Trace::of(victim::build("counts.c", &["-O0", "-static"]));
    let alone = trace.untraced();
    let outcome = trace.run();
    assert_eq!((outcome.output.status, outcome.stdout().into_bytes()), (alone.status, alone.stdout));
    let said = outcome.stderr();
    assert!(said.contains("NOTHING WAS RECORDED: ") && said.contains("statically linked"), "{said}");
}

#[test]
fn an_output_that_cannot_be_written_is_found_before_the_start() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let marker = folder.path().join("ran");
    let marker = marker.to_str().expect("UTF-8");
    let here = folder.path().to_str().expect("UTF-8");
    for (place, follow) in [
        ("/nonexistent/folder/s.snap.zst", "--follow"),
        ("/proc/s.snap.zst", "--follow"),
        ("/proc/folder", "--follow"),
        (here, "--no-follow"),
    ] {
        let output = aggregator(&["run", follow, "-o", place, "--", "touch", marker]);
        assert_refused(&output, 125, &[place]);
        assert!(!Path::new(marker).exists(), "the command did not start");
    }
}

#[test]
fn wrong_options_are_wrong_usage() {
    for (args, words) in [
        (&["run", "--nframe", "0", "--", "true"][..], &["--nframe", "0"][..]),
        (&["run", "--nframe", "65536", "--", "true"], &["--nframe", "65535"]),
        (&["run", "--nframe", "many", "--", "true"], &["--nframe", "many"]),
        (&["run", "--max-target-memory", "lots", "--", "true"], &["--max-target-memory", "lots"]),
        (&["run", "--no-such-option", "--", "true"], &["--no-such-option"]),
        (&["run"], &[]),
        (&["ctl", "1", "dance"], &["dance"]),
        (&["ctl", "1", "lookup", "xyz"], &["xyz"]),
        (&["--attach", "self"], &["self"]),
        (&["--attach", "1", "--duration", "-1"], &["-1"]),
        (&[], &[]),
    ] {
        let output = aggregator(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {word} is not in: {stderr}");
        }
    }
}

#[test]
fn wrong_options_of_report_are_wrong_usage() {
    let outcome = snapshot();
    for (args, word) in [
        (&["--by", "colour"][..], "colour"),
        (&["--by", "traceback", "--cumulative"], "--cumulative"),
        (&["--format", "pprof"], "pprof"),
        (&["--at", "noon"], "noon"),
        (&["--domain", "heap"], "heap"),
        (&["--limit", "few"], "few"),
        (&["--by", "size", "--at", "peak"], "size"),
        (&["--by", "size", "--at", "total"], "live blocks only"),
    ] {
        let output = report(&outcome.snapshot_path(), args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn snapshots_that_are_none() {
    let outcome = snapshot();
    let good = std::fs::read(outcome.snapshot_path()).expect("the snapshot");
    let bad = outcome.directory().join("bad.snap.zst");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&bad, bytes).expect("written");
        let output = report(&bad, &[]);
        assert_refused(&output, 1, &["bad.snap.zst"]);
        assert!(output.stdout.is_empty(), "{what}");
    };
    refused(b"", "an empty file");
    refused(b"no snapshot at all, but long enough to look at its first bytes", "foreign text");
    refused(&zstd::encode_all(&b"some other compressed file"[..], 1).expect("in memory"), "a foreign zstd file");
    for keep in [1, 10, good.len() / 2, good.len() - 1] {
        refused(&good[..keep], "cut short");
    }
    for at in [good.len() / 3, good.len() / 2, good.len() - 2] {
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        refused(&flipped, "one bit flipped");
    }
    let mut content = zstd::decode_all(good.as_slice()).expect("a valid zstd file");
    content[8] += 1;
    std::fs::write(&bad, zstd::encode_all(content.as_slice(), 1).expect("in memory")).expect("written");
    assert_refused(&report(&bad, &[]), 1, &["version 2", "version 1"]);

    assert_refused(&report(Path::new("/nonexistent.snap.zst"), &[]), 1, &["/nonexistent.snap.zst"]);
    assert_refused(&report(outcome.directory(), &[]), 1, &[outcome.directory().to_str().expect("UTF-8")]);
    std::fs::write(&bad, &good[..20]).expect("written");
    let diff = report(&outcome.snapshot_path(), &["--diff", bad.to_str().expect("UTF-8")]);
    assert_refused(&diff, 1, &["bad.snap.zst"]);
}

#[test]
fn a_filter_that_matches_nothing_is_no_failure() {
    let outcome = snapshot();
    let output = report(&outcome.snapshot_path(), &["--filter", "/no/such/file.c", "--format", "json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "a note");
    let parsed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(parsed["stats"].as_array().map(Vec::len), Some(0));
    assert_eq!(parsed["total"], serde_json::json!({"groups": 0, "size": 0, "count": 0}));
}

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let outcome = snapshot();
    for format in ["text", "json", "csv", "folded", "html", "massif", "markdown"] {
        // A page has all rows.
        let limit: &[&str] = if format == "html" { &[] } else { &["--limit", "0"] };
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(&programs().report);
        command.arg(outcome.snapshot_path()).args(limit).args(["--format", format]).stdout(writer);
        let output = command.stderr(Stdio::piped()).output().expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{format}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{format}");
    }
}

/// A file system of 64 KiB. Only root can make a file system.
struct TinyDisk(PathBuf, #[expect(dead_code, reason = "keeps the mount point")] tempfile::TempDir);

impl TinyDisk {
    fn mount() -> Option<TinyDisk> {
        let folder = tempfile::TempDir::new().expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(folder.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(TinyDisk(folder.path().to_owned(), folder)),
            other => {
                skip(&format!("mount does not work here: {other:?}"));
                None
            }
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // Nothing more can be done about a mount that stays, and the test has its verdict.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    if !is_root() {
        return;
    }
    let Some(disk) = TinyDisk::mount() else { return };
    let old = disk.0.join("s.snap.zst");
    std::fs::write(&old, b"the old file").expect("there is room");
    let filler = vec![0; 56 << 10];
    std::fs::write(disk.0.join("filler"), filler).expect("there is room");
    let program = victim::build("sizes.c", &["-O1"]);
    let program = program.to_str().expect("UTF-8");
    let output = aggregator(&["run", "-o", old.to_str().expect("UTF-8"), "--", program, "20000"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("s.snap.zst") && stderr.contains("space"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_eq!(std::fs::read(&old).expect("still there"), b"the old file");
    let names = stdout_of(Command::new("ls").arg("-A").arg(&disk.0));
    assert_eq!(names, "filler\ns.snap.zst\n", "nothing half-written stays");
}

#[test]
fn a_second_aggregator_is_told_of_the_first() {
    let running = Trace::of("sleep").arg("60").spawn();
    let target = running.target_pid();
    let output = crate::support::wait_for("the control socket", || {
        let stats = crate::support::trace::ctl(target, &["stats"]);
        stats.status.success().then(|| aggregator(&["--attach", &target.to_string()]))
    });
    assert_refused(&output, 1, &[&running.aggregator_pid().to_string()]);
    crate::support::trace::kill(target, libc::SIGTERM);
    running.finish().expect_code(128 + libc::SIGTERM);
}
