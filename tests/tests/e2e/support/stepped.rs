//! A program that does a step for each byte of standard input and answers with a byte, and helpers
//! to attach to this program.

use super::report::Report;
use super::trace::{ctl, kill, report_on};
use super::{programs, wait_for};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use tempfile::TempDir;

/// A victim that waits for a byte on standard input before each step.
pub struct Stepped {
    pub folder: TempDir,
    pub child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl Stepped {
    /// Starts the program and waits until the program is ready for the first step.
    pub fn start(command: &mut Command) -> Stepped {
        let folder = TempDir::new().expect("a folder");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let mut stepped = Stepped { folder, child, stdin, stdout };
        stepped.wait();
        stepped
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    fn wait(&mut self) {
        let mut byte = [0];
        self.stdout.read_exact(&mut byte).expect("the victim answers");
        assert_eq!(&byte, b".", "the victim is ready again");
    }

    /// Requests a step without waiting for the end of the step.
    pub fn ask(&mut self, step: u8) {
        self.stdin.as_mut().expect("open").write_all(&[step]).expect("the victim listens");
    }

    /// Does a step.
    pub fn step(&mut self, step: u8) {
        self.ask(step);
        self.wait();
    }

    /// Does several steps.
    pub fn steps(&mut self, steps: &str) {
        steps.bytes().for_each(|step| self.step(step));
    }

    /// Does a step with a line of output. Returns the line.
    pub fn line(&mut self, step: u8) -> String {
        self.ask(step);
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.stdout.read_exact(&mut byte).expect("a line");
            line.push(byte[0]);
        }
        self.wait();
        String::from_utf8(line).expect("text").trim().to_owned()
    }

    pub fn snapshot_path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts an aggregator and waits until the aggregator is attached.
    pub fn attach(&self, snapshot: &Path, options: &[&str]) -> Child {
        let mut child = attach_command(self.pid(), snapshot).args(options).spawn().expect("it starts");
        wait_for("the attached aggregator", || {
            if child.try_wait().expect("ours").is_some() {
                let mut said = String::new();
                child.stderr.as_mut().expect("piped").read_to_string(&mut said).expect("text");
                panic!("it did not attach: {said}");
            }
            ctl(self.pid(), &["stats"]).status.success().then_some(())
        });
        child
    }

    /// Attaches, detaches, and checks the number of allocations in between.
    #[track_caller]
    pub fn assert_counted(&mut self, what: &str) -> Report {
        let snapshot = self.snapshot_path("counted.snap.zst");
        let aggregator = self.attach(&snapshot, &[]);
        self.steps("mMf");
        detach(aggregator);
        let report = report_on(&snapshot, &[]);
        assert_eq!((report.native().allocs, report.native().frees), (2, 2), "{what}");
        report
    }

    /// Checks that a next aggregator can attach as usual.
    #[track_caller]
    pub fn assert_can_be_traced(mut self, what: &str) {
        self.steps("mMrf");
        self.assert_counted(what);
        assert_eq!(self.finish(), 0, "{what}");
    }

    /// Closes the program's standard input and returns the exit status.
    pub fn finish(mut self) -> i32 {
        drop(self.stdin.take());
        self.child.wait().expect("it ends").code().expect("it exits")
    }
}

/// Steps of an attach or a detach where a test can kill or stop an aggregator.
pub const STEPS: [&str; 13] = [
    "stopped", "framed", "sent", "masked", "mapped", "ready", "opened", "written", "loaded", "called", "unmapped",
    "unmasked", "restored",
];

/// The command `aggregator --attach PID -o SNAPSHOT`.
pub fn attach_command(pid: i32, snapshot: &Path) -> Command {
    let mut command = Command::new(&programs().aggregator);
    command.args(["--attach", &pid.to_string(), "-o"]).arg(snapshot).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Ends an attached aggregator as Ctrl-C does. Returns the printed messages.
pub fn detach(aggregator: Child) -> String {
    kill(i32::try_from(aggregator.id()).expect("a pid"), libc::SIGINT);
    ended(aggregator)
}

/// Waits for the end of an aggregator. Returns the printed messages.
pub fn ended(aggregator: Child) -> String {
    let output: Output = aggregator.wait_with_output().expect("the aggregator ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// A process that is killed at the end of the test, whatever the result.
pub struct Background(Child);

impl Background {
    pub fn of(mut command: Command) -> Background {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Background(command.spawn().expect("it starts"))
    }

    /// A sleeping process, which lasts longer than the test.
    pub fn sleep() -> Background {
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        Background::of(sleep)
    }

    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Waits until a line of the process's status begins with any of these texts.
    pub fn wait_for(&self, lines: &[&str]) {
        let status = format!("/proc/{}/status", self.pid());
        wait_for("a process's state", || {
            let status = std::fs::read_to_string(&status).ok()?;
            status.lines().any(|line| lines.iter().any(|begin| line.starts_with(begin))).then_some(())
        });
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // A process that has already ended is fine.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
