//! What the kernel says of processes and of the machine.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

/// CPU time of a process by thread, in nanoseconds; what a thread had when it was seen last stays.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    threads: BTreeMap<u32, (String, u64)>,
}

impl Cpu {
    /// Looks at all threads that there are.
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

    /// Seconds by the threads' names, since an earlier look.
    pub fn since(&self, earlier: &Cpu) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (tid, (name, time)) in &self.threads {
            let before = earlier.threads.get(tid).map_or(0, |(_, time)| *time);
            *sums.entry(name.clone()).or_insert(0.0) += time.saturating_sub(before) as f64 / 1e9;
        }
        sums
    }
}

/// The children of all threads of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let all: Vec<String> = tasks.flatten().map(of_task).collect();
    all.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

/// A line of /proc/PID/status that ends in kB: `VmRSS`, `VmHWM`.
pub fn memory_bytes(pid: u32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kilobytes(&status, line).unwrap_or(0)
}

fn kilobytes(text: &str, line: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// What the machine lacks to give so many bytes; none when it has them.
pub fn memory_missing(bytes: u64) -> Option<u64> {
    let available = kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")?;
    bytes.checked_sub(available).filter(|&missing| missing > 0)
}

/// Runnable threads of the machine, averaged over a minute.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// CPU time of it and of all that it has waited for.
    pub cpu_s: f64,
    /// Most resident memory of one of them.
    pub peak_bytes: u64,
}

/// Whether the process has ended; it must end well.
pub fn ended(child: &Child, wait: bool) -> Result<Option<Ended>> {
    let pid = i32::try_from(child.id()).context("a pid")?;
    let mut status = 0;
    let usage = wait4(pid, &mut status, if wait { 0 } else { libc::WNOHANG })?;
    let Some(usage) = usage else { return Ok(None) };
    let status = ExitStatus::from_raw(status);
    ensure!(status.success(), "it ended with {status}");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let peak_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Ok(Some(Ended { cpu_s: seconds(usage.ru_utime) + seconds(usage.ru_stime), peak_bytes }))
}

#[expect(unsafe_code, reason = "the standard library's wait does not say what was used")]
fn wait4(pid: i32, status: &mut i32, options: i32) -> Result<Option<libc::rusage>> {
    // SAFETY: a rusage is plain numbers, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call's writes.
    let waited = unsafe { libc::wait4(pid, status, options, &mut usage) };
    ensure!(waited >= 0, "cannot wait for the process: {}", std::io::Error::last_os_error());
    Ok((waited == pid).then_some(usage))
}
