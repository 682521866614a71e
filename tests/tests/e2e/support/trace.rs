//! Commands under `aggregator run`, and the results.

use super::report::{Report, Stats, TreeReport};
use super::{PATIENCE, programs, wait_for};
use heapline_shared_format::snapshot::{self, Domain, Snapshot};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// A command to be traced.
pub struct Trace {
    directory: TempDir,
    options: Vec<OsString>,
    command: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Vec<u8>,
}

impl Trace {
    pub fn of(program: impl AsRef<OsStr>) -> Trace {
        Trace {
            directory: TempDir::new().expect("a folder for the snapshot"),
            options: Vec::new(),
            command: vec![program.as_ref().to_owned()],
            environment: Vec::new(),
            input: Vec::new(),
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Trace {
        self.command.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Trace {
        args.into_iter().fold(self, Trace::arg)
    }

    /// Adds an option of `aggregator run`.
    pub fn option(mut self, option: impl AsRef<OsStr>) -> Trace {
        self.options.push(option.as_ref().to_owned());
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Trace {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Sets the command's standard input. The default is empty.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Trace {
        self.input = bytes.into();
        self
    }

    /// The folder of the snapshot, also usable for a test's files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Path of the snapshot.
    pub fn snapshot_path(&self) -> PathBuf {
        self.directory.path().join("out.snap.zst")
    }

    fn traced(&self) -> Command {
        let mut command = Command::new(&programs().aggregator);
        command.arg("run").arg("-o").arg(self.snapshot_path()).args(&self.options).arg("--").args(&self.command);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Starts the command with pipes for all three streams.
    pub fn spawn(self) -> Running {
        let mut command = self.traced();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("the aggregator starts");
        Running { child, trace: self }
    }

    /// Runs the command to the end.
    pub fn run(self) -> Outcome {
        let input = self.input.clone();
        let mut running = self.spawn();
        let mut stdin = running.child.stdin.take().expect("piped");
        // A command that does not read standard input closes the pipe.
        let writer = std::thread::spawn(move || stdin.write_all(&input).ok());
        let outcome = running.finish();
        writer.join().expect("the writer does not panic");
        outcome
    }

    /// Runs the command in the same environment without tracing.
    pub fn untraced(&self) -> Output {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).envs(self.environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command starts");
        child.stdin.take().expect("piped").write_all(&self.input).expect("the command reads its input");
        child.wait_with_output().expect("the command ends")
    }
}

/// A running traced command.
pub struct Running {
    pub child: Child,
    trace: Trace,
}

impl Running {
    /// The process id of the aggregator.
    pub fn aggregator_pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// The process id of the traced command: the aggregator's child, after the child's exec of the
    /// command.
    pub fn target_pid(&self) -> i32 {
        let aggregator = self.aggregator_pid();
        wait_for("the traced command's process", || {
            let children = std::fs::read_to_string(format!("/proc/{aggregator}/task/{aggregator}/children")).ok()?;
            let pid: i32 = children.split_whitespace().next()?.parse().ok()?;
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            (exe != programs().aggregator.canonicalize().ok()?).then_some(pid)
        })
    }

    pub fn snapshot_path(&self) -> PathBuf {
        self.trace.snapshot_path()
    }

    /// Waits for the end and collects everything. Kills the aggregator after too long a time.
    pub fn finish(self) -> Outcome {
        let pid = self.aggregator_pid();
        let (done, watched) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            let late = watched.recv_timeout(PATIENCE * 2) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
            if late {
                kill(pid, libc::SIGKILL);
            }
            late
        });
        let start = Instant::now();
        let output = self.child.wait_with_output().expect("the aggregator ends");
        drop(done);
        assert!(!watchdog.join().expect("the watchdog does not panic"), "no end after {:?}", start.elapsed());
        Outcome { output, trace: self.trace }
    }
}

/// A traced command after its end.
pub struct Outcome {
    pub output: Output,
    trace: Trace,
}

impl Outcome {
    pub fn status(&self) -> ExitStatus {
        self.output.status
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub fn directory(&self) -> &Path {
        self.trace.directory.path()
    }

    pub fn snapshot_path(&self) -> PathBuf {
        self.trace.snapshot_path()
    }

    /// Checks that the command's exit status is `code` (128 + N for signal N).
    pub fn expect_code(self, code: i32) -> Outcome {
        let status = self.output.status;
        assert_eq!(status.code(), Some(code), "{status}, signal {:?}\n{}", status.signal(), self.stderr());
        self
    }

    /// Numbers printed by a victim as lines of `name value`.
    pub fn printed(&self) -> BTreeMap<String, u64> {
        printed(&self.output.stdout)
    }

    /// Runs `report` on the snapshot, with all rows.
    pub fn report(&self, options: &[&str]) -> Report {
        let report = report_on(&self.snapshot_path(), options);
        if report.snapshot.contradictions > 0 {
            // A report has only the number of contradictions. A failing test should show the kinds.
            eprintln!("contradictions: {:?}", self.snapshot().meta.contradictions);
        }
        report
    }

    /// Reads the snapshot, for details that a report does not show.
    pub fn snapshot(&self) -> Snapshot {
        read_snapshot(&self.snapshot_path())
    }
}

/// Lines of `name value` as a map. Other lines are ignored.
pub fn printed(stdout: &[u8]) -> BTreeMap<String, u64> {
    let text = String::from_utf8_lossy(stdout);
    let pair = |line: &str| line.split_once(' ').and_then(|(k, v)| Some((k.to_owned(), v.trim().parse().ok()?)));
    text.lines().filter_map(pair).collect()
}

/// Reads a snapshot file with the library.
pub fn read_snapshot(path: &Path) -> Snapshot {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    snapshot::read(BufReader::new(file)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Number of live native blocks by size.
pub fn live_sizes(snapshot: &Snapshot) -> BTreeMap<u64, u64> {
    let mut sizes = BTreeMap::new();
    for group in snapshot.live.iter().filter(|g| g.domain == Domain::Native) {
        *sizes.entry(group.size).or_default() += group.count;
    }
    sizes
}

/// Runs and parses `report SNAPSHOT --format json --limit 0 OPTIONS`. The symbol cache lies beside
/// the snapshot, so that tests do not share a cache.
///
/// Blocks are grouped under the most recent frame unless `options` has `--blame`. The victims count
/// their own calls of malloc, not allocations by libraries.
pub fn report_on(snapshot: &Path, options: &[&str]) -> Report {
    let mut command = Command::new(&programs().report);
    command.arg(snapshot).args(["--format", "json", "--limit", "0"]).args(options);
    if !options.contains(&"--blame") {
        command.args(["--blame", "leaf"]);
    }
    command.env("XDG_CACHE_HOME", snapshot.parent().expect("a folder").join("cache"));
    let output = command.output().expect("report runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    let report: Report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        panic!("{command:?} does not keep its contract: {e}\n{}", String::from_utf8_lossy(&output.stdout))
    });
    assert_eq!(report.version, 1);
    report
}

/// Runs and parses `report --tree FOLDER --format json --limit 0 OPTIONS`.
pub fn tree_report(folder: &Path, options: &[&str]) -> TreeReport {
    let mut command = Command::new(&programs().report);
    command.arg("--tree").arg(folder).args(["--format", "json", "--limit", "0"]).args(options);
    if !options.contains(&"--blame") {
        command.args(["--blame", "leaf"]);
    }
    command.env("XDG_CACHE_HOME", folder.with_file_name("cache"));
    let output = command.output().expect("report runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs `aggregator ctl PID ...`.
pub fn ctl(pid: i32, args: &[&str]) -> Output {
    Command::new(&programs().aggregator).arg("ctl").arg(pid.to_string()).args(args).output().expect("ctl runs")
}

/// Runs `aggregator ctl PID ...`, which must succeed. Returns the standard output.
pub fn ctl_ok(pid: i32, args: &[&str]) -> String {
    let output = ctl(pid, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ctl {pid} {args:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("ctl writes UTF-8")
}

/// Runs and parses `aggregator ctl PID stats`.
pub fn stats(pid: i32) -> Stats {
    let json = ctl_ok(pid, &["stats", "--format", "json"]);
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("stats do not keep their contract: {e}\n{json}"))
}

/// Sends a signal. A dead process is no failure.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: `kill` accesses no memory of this process; callers pass a process or group started by
    // this test.
    unsafe { libc::kill(pid, signal) };
}
