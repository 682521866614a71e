//! Facts from the kernel about processes and the machine, and a runner of programs that must
//! succeed.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// CPU time of a process by thread, in nanoseconds. The time of an ended thread is the time when
/// last seen.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    threads: BTreeMap<u32, (String, u64)>,
}

impl Cpu {
    /// Reads the times of all present threads.
    pub fn sample(&mut self, pid: u32) {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
        for task in tasks.flatten() {
            let read = |file| std::fs::read_to_string(task.path().join(file)).ok();
            let time = |text: String| text.split(' ').next()?.parse().ok();
            let tid = task.file_name().to_string_lossy().parse().ok();
            if let (Some(tid), Some(name), Some(time)) = (tid, read("comm"), read("schedstat").and_then(time)) {
                self.threads.insert(tid, (name.trim().to_owned(), time));
            }
        }
    }

    /// Returns the seconds since an earlier sample, by thread name.
    pub fn since(&self, earlier: &Cpu) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (tid, (name, time)) in &self.threads {
            let before = earlier.threads.get(tid).map_or(0, |(_, time)| *time);
            *sums.entry(name.clone()).or_insert(0.0) += time.saturating_sub(before) as f64 / 1e9;
        }
        sums
    }
}

/// Returns the children of all threads of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let all: Vec<String> = tasks.flatten().map(of_task).collect();
    all.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns the value of a line of /proc/PID/status that ends in kB: `VmRSS`, `VmHWM`. None for an
/// ended process.
pub fn memory_bytes(pid: u32, line: &str) -> Option<u64> {
    kilobytes(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?, line)
}

fn kilobytes(text: &str, line: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// Returns the bytes missing on the machine, when so many `bytes` are needed. None when the machine
/// has them.
pub fn memory_missing(bytes: u64) -> Option<u64> {
    let available = kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")?;
    bytes.checked_sub(available).filter(|&missing| missing > 0)
}

/// Returns the number of runnable threads of the machine, averaged over a minute.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Exit status of the process.
    pub status: ExitStatus,
    /// User and system time of the process, and of all processes it has waited for.
    pub cpu: Duration,
    /// Largest resident memory among these processes.
    pub peak_bytes: u64,
}

/// Returns how a child ended. None while the child runs, unless `waits` is set.
#[expect(unsafe_code, reason = "the standard library's wait does not say what was used")]
pub fn wait4(pid: u32, waits: bool) -> Result<Option<Ended>> {
    let pid = i32::try_from(pid).context("a pid")?;
    let mut status = 0;
    // SAFETY: a rusage is plain numbers, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let options = if waits { 0 } else { libc::WNOHANG };
    // SAFETY: `status` and `usage` are valid for the writes of `wait4`.
    let waited = unsafe { libc::wait4(pid, &mut status, options, &mut usage) };
    if waited == 0 {
        return Ok(None);
    }
    ensure!(waited == pid, "cannot wait for the process: {}", std::io::Error::last_os_error());
    let time = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    let peak_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    let cpu = time(usage.ru_utime) + time(usage.ru_stime);
    Ok(Some(Ended { status: ExitStatus::from_raw(status), cpu, peak_bytes }))
}

/// Returns the standard output of a command that must succeed.
pub fn succeed(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Compiles a workload with a single C file.
pub fn compile(source: &Path, program: &Path) -> Result<()> {
    succeed(Command::new("gcc").args(["-O2", "-g", "-o"]).arg(program).arg(source).arg("-lpthread")).map(drop)
}
