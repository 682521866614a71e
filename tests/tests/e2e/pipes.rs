//! Snapshots and reports written into a pipe whose reader does not come or stops reading.

use crate::support::trace::kill;
use crate::support::{Outcome, Trace, programs, stdout_of, wait_for};
use heapline_shared_format::snapshot;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Number of blocks whose snapshot is larger than a pipe, so the writer waits for the reader.
const LARGE: &str = "20000";

fn pipe(folder: &Path) -> PathBuf {
    let pipe = folder.join("pipe");
    stdout_of(Command::new("mkfifo").arg(&pipe));
    pipe
}

/// Opens the pipe for reading without reading.
fn silent_reader(pipe: &Path) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(pipe).expect("a reader waits for nobody")
}

fn run_into(pipe: &Path, command: &[&str]) -> Child {
    let mut run = Command::new(&programs().aggregator);
    run.args(["run", "--no-follow", "-o"]).arg(pipe).arg("--").args(command);
    run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs")
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("a pid")
}

/// Sends signals until the process ends. Signals during the command's run go to the command, which
/// ignores signals.
fn end_by(signal: i32, mut child: Child) -> String {
    wait_for("the end", || {
        kill(pid(&child), signal);
        std::thread::sleep(std::time::Duration::from_millis(20));
        child.try_wait().expect("ours")
    });
    let output = child.wait_with_output().expect("it has ended");
    assert_eq!(output.status.code(), Some(0), "the command's");
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// Waits until the command has done its work: the command has ended or is about to end.
fn await_end_of_command(folder: &Path) {
    wait_for("the command", || std::fs::remove_file(folder.join("ran")).ok());
}

/// A shell script: ignores signals and creates the file `ran`.
fn deaf(folder: &Path) -> String {
    format!("trap '' INT TERM HUP; : > {}", folder.join("ran").display())
}

#[test]
fn a_signal_ends_the_wait_for_a_reader_that_does_not_come() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let folder = tempfile::TempDir::new().expect("a folder");
        let pipe = pipe(folder.path());
        let link = folder.path().join("link.zst");
        std::os::unix::fs::symlink(&pipe, &link).expect("a link");
        for place in [&pipe, &link] {
            let child = run_into(place, &["/bin/sh", "-c", &deaf(folder.path())]);
            await_end_of_command(folder.path());
            let said = end_by(signal, child);
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(said.contains("pipe"), "{said}");
        }
    }
}

#[test]
fn a_reader_that_does_not_come_is_given_up() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let output = run_into(&pipe(folder.path()), &["true"]).wait_with_output().expect("it ends by itself");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success() && said.contains("nobody reads the pipe"), "{said}");
}

#[test]
fn a_signal_ends_the_wait_for_a_reader_that_does_not_read() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let pipe = pipe(folder.path());
    let reader = silent_reader(&pipe);
    let filler = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe).expect("there is a reader");
    while std::io::Write::write(&mut &filler, &[0; 4096]).is_ok() {}
    let child = run_into(&pipe, &["/bin/sh", "-c", &deaf(folder.path())]);
    await_end_of_command(folder.path());
    let said = end_by(libc::SIGINT, child);
    assert!(said.contains("was not written") && said.lines().count() == 1, "{said}");
    drop(reader);
}

#[test]
fn a_reader_that_comes_late_and_reads_slowly_gets_all() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let pipe = pipe(folder.path());
    let program = crate::support::victim::build("sizes.c", &["-O1"]);
    let child = run_into(&pipe, &[program.to_str().expect("UTF-8"), LARGE]);
    let snapshot = snapshot::read(std::io::BufReader::with_capacity(512, File::open(&pipe).expect("a pipe")));
    assert!(snapshot.expect("a whole one").meta.pid > 1);
    assert!(child.wait_with_output().expect("it ends").status.success());
}

#[test]
fn a_snapshot_of_a_running_process_is_given_up_with_whoever_wanted_it() {
    let running = Trace::of("/bin/sh").args(["-c", "read line"]).spawn();
    let target = running.target_pid();
    let folder = tempfile::TempDir::new().expect("a folder");
    let pipe = pipe(folder.path());
    let _reader = silent_reader(&pipe);
    let filler = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe).expect("there is a reader");
    while std::io::Write::write(&mut &filler, &[0; 4096]).is_ok() {}
    wait_for("the control socket", || crate::support::trace::ctl(target, &["stats"]).status.success().then_some(()));
    let mut ctl = Command::new(&programs().aggregator);
    ctl.args(["ctl", &target.to_string(), "snapshot", "-o"]).arg(&pipe).stderr(Stdio::null()).stdout(Stdio::null());
    let mut ctl = ctl.spawn().expect("it runs");
    let has_pipe = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", running.aggregator_pid())).ok()?;
        let is_it = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).is_ok_and(|target| target == pipe);
        Some(open.flatten().any(is_it))
    };
    wait_for("the pipe to be written to", || has_pipe()?.then_some(()));
    ctl.kill().expect("ours");
    ctl.wait().expect("it was killed");
    wait_for("the pipe to be let go", || (!has_pipe()?).then_some(()));
    // The end of standard input ends the shell's `read`.
    running.finish();
}

#[test]
fn a_report_does_not_wait_for_ever_for_a_reader() {
    let outcome: Outcome = Trace::of("true").run().expect_code(0);
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut report = Command::new(&programs().report);
    let output = report.arg(outcome.snapshot_path()).arg("-o").arg(pipe(folder.path())).output().expect("it runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.code() == Some(1) && said.contains("nobody reads"), "{said}");
}
