//! Child processes that cannot block the laboratory, fill its memory, or outlive a run.
//!
//! - Every process begins a new session, without a terminal.
//! - Every process resets the signals that end a process, even if the laboratory ignores them
//!   (`nohup`, the background of a shell).
//! - The laboratory is a subreaper: orphans of a process become its children, so
//!   [`end_all_children`] finds and ends them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes kept of a stream. Further output is read and dropped.
const KEPT_BYTES: usize = 1 << 20;
/// Pause between two checks of an awaited condition.
const PAUSE: Duration = Duration::from_millis(2);

/// Parameters to start a process.
pub struct Launch<'a> {
    /// The program and its arguments.
    pub argv: &'a [String],
    /// The whole environment.
    pub environment: &'a BTreeMap<String, String>,
    /// The current directory.
    pub folder: &'a Path,
}

/// A running process, with its output so far.
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    /// Standard output.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
}

/// An output stream of a process, read by a thread.
pub struct Stream {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Running {
    /// Starts a process. Its standard input is a pipe, written to by [`Running::say`].
    pub fn start(launch: &Launch) -> io::Result<Running> {
        let (program, arguments) = launch.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(launch.environment).current_dir(launch.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: `begin_alone` runs between fork and exec and makes async-signal-safe calls only.
        unsafe {
            command.pre_exec(begin_alone);
        }
        let mut child = command.spawn()?;
        let stdout = Stream::read(child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
        let stderr = Stream::read(child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?);
        let input = child.stdin.take();
        Ok(Running { child, input, stdout, stderr })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to the process's standard input. It is no error if the process reads no more.
    pub fn say(&mut self, text: &str) {
        if let Some(input) = &mut self.input
            && input.write_all(text.as_bytes()).is_err()
        {
            self.input = None;
        }
    }

    /// Ends the process's standard input.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: i32) {
        send(self.pid(), signal);
    }

    /// Waits for the end. Returns `None` if the process still runs at `deadline`.
    pub fn wait(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Begins a session, and resets all ignored signals that end a process.
fn begin_alone() -> io::Result<()> {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: SIG_DFL installs no function of this process as a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: setsid touches no memory of this process.
    if unsafe { libc::setsid() } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Exit status as a shell reports it: 128 + N for signal N.
pub fn shell_status(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

impl Stream {
    fn read(mut source: impl Read + Send + 'static) -> Stream {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(n @ 1..) = source.read(&mut buffer) {
                let mut state = theirs.lock();
                let room = KEPT_BYTES.saturating_sub(state.bytes.len());
                state.bytes.extend_from_slice(&buffer[..n.min(room)]);
                theirs.changed.notify_all();
            }
            theirs.lock().ended = true;
            theirs.changed.notify_all();
        });
        Stream { shared, reader: Some(reader) }
    }

    /// Waits until the stream has `lines` lines. Returns whether the lines came in time.
    pub fn wait_for_lines(&self, lines: usize, deadline: Instant) -> bool {
        self.wait_until(|bytes| bytes.iter().filter(|&&byte| byte == b'\n').count() >= lines, deadline)
    }

    /// Waits until the stream contains `words`. Returns whether the words came in time.
    pub fn wait_for_words(&self, words: &str, deadline: Instant) -> bool {
        self.wait_until(|bytes| bytes.windows(words.len()).any(|window| window == words.as_bytes()), deadline)
    }

    fn wait_until(&self, has: impl Fn(&[u8]) -> bool, deadline: Instant) -> bool {
        let mut state = self.shared.lock();
        loop {
            if has(&state.bytes) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return false;
            }
            state = match self.shared.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Returns all output. Waits until every process with the stream has ended.
    pub fn finish(mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            // After a panic of the reader, the bytes read so far are kept.
            drop(reader.join());
        }
        std::mem::take(&mut self.shared.lock().bytes)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Waits until `probe` returns true. Returns whether this happened before `deadline`.
pub fn wait_until(deadline: Instant, mut probe: impl FnMut() -> bool) -> bool {
    loop {
        if probe() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(PAUSE * 5);
    }
}

/// Sends a signal to a process. A missing process is no error.
fn send(pid: u32, signal: i32) {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return };
    // SAFETY: kill touches no memory of this process.
    unsafe { libc::kill(pid, signal) };
}

/// Returns the child processes of `parent`, by process id.
pub fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut children: Vec<u32> = pids.filter(|&pid| parent_of(pid) == Some(parent)).collect();
    children.sort_unstable();
    children
}

/// Returns the parent's process id: the second field behind the name in parentheses.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Makes this process the parent of orphaned descendants.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: this prctl takes numbers and touches no memory.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends every child of this process, and every process that becomes a child by this.
pub fn end_all_children() {
    let own = std::process::id();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let children = children_of(own);
        if children.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in children {
            send(pid, libc::SIGKILL);
        }
        // SAFETY: waitpid with a null pointer stores no status. WNOHANG keeps the call from
        // waiting.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned);
        let launch = Launch { argv: &argv, environment: &BTreeMap::new(), folder: Path::new("/") };
        Running::start(&launch).expect("a shell starts")
    }

    #[test]
    fn a_process_answers_line_by_line_and_ends_with_its_input() {
        let mut process = shell("echo ready; while read x; do echo \"$x!\"; done; exit 3");
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(process.stdout.wait_for_lines(1, deadline));
        process.say("one\n");
        assert!(process.stdout.wait_for_lines(2, deadline));
        process.end_input();
        let status = process.wait(deadline).expect("can be waited for").expect("ends");
        assert_eq!(shell_status(status), 3);
        assert_eq!(process.stdout.finish(), b"ready\none!\n");
    }

    #[test]
    fn output_is_kept_up_to_a_bound_and_a_signal_counts_from_128() {
        let mut process = shell("head -c 3000000 /dev/zero; kill -9 $$");
        let status = process.wait(Instant::now() + Duration::from_secs(60));
        assert_eq!(shell_status(status.expect("can be waited for").expect("ends")), 137);
        assert_eq!(process.stdout.finish().len(), KEPT_BYTES);
    }

    #[test]
    fn a_process_is_ended_by_a_signal_that_the_laboratory_ignores() {
        // SAFETY: SIG_IGN installs no function of this process as a handler.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
        let argv = ["/bin/sh", "-c", "kill -INT $$; echo it lives"].map(str::to_owned);
        let launch = Launch { argv: &argv, environment: &BTreeMap::new(), folder: Path::new("/") };
        let mut shell = Running::start(&launch).expect("a shell");
        let status = shell.wait(Instant::now() + Duration::from_secs(60)).expect("a child");
        assert_eq!(status.map(shell_status), Some(128 + libc::SIGINT));
        assert_eq!(shell.stdout.finish(), b"");
    }
}
