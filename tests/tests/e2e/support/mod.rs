//! Support for every end-to-end test: the built programs, compiled victims, traced runs, parsed
//! reports.

pub mod programs;
pub mod python;
pub mod report;
pub mod stepped;
pub mod trace;
pub mod victim;
mod watch;

pub use programs::programs;
pub use report::Report;
pub use trace::{Outcome, Running, Trace};

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for anything. A machine under load is slow, and a hanging test must end all the
/// same.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this is a CI run. In CI a test that cannot run is a failure.
fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|v| v == "true")
}

/// Prints why a test does not run. Panics in CI, where every test must run.
pub fn skip(why: &str) {
    assert!(!is_ci(), "cannot be skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// Whether `program` is installed. Skips the test with a message if not.
pub fn has(program: &str) -> bool {
    let found = find_in_path(program).is_some();
    if !found {
        skip(&format!("{program} is not installed"));
    }
    found
}

pub fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// Whether the tests run as root. Skips the test with a message if not.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        skip("only root can do this");
    }
    root
}

/// Calls `probe` until a value is returned. Panics after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Number of rounds of a randomised test (seeds, kills): the variable's value, or `default`.
pub fn rounds(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{variable} is no number: {value}")),
        Err(_) => default,
    }
}

/// Runs a command and returns the standard output. Panics if the command fails.
pub fn stdout_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// A small generator of repeatable choices (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
