//! The machine of a measurement. Without it the figures mean nothing.

use serde::{Deserialize, Serialize};
use std::process::Command;

/// The machine, and the versions of the measured programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Day of the measurement, UTC.
    pub date: String,
    /// Model of the processor.
    pub cpu: String,
    /// Number of processors available to this process.
    pub cores: usize,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Release of Linux.
    pub kernel: String,
    /// First line of each program's version text.
    pub versions: Vec<String>,
}

/// Reads the facts about this machine.
pub fn describe() -> Machine {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
        line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let memory = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let programs = [
        ["heaptrack", "--version"],
        ["gcc", "--version"],
        ["ldd", "--version"],
        ["sqlite3", "--version"],
        ["redis-server", "--version"],
        ["rustc", "--version"],
    ];
    Machine {
        date: today(),
        cpu: field("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_bytes: memory,
        kernel,
        versions: programs.into_iter().filter_map(|[program, option]| version(program, option)).collect(),
    }
}

fn version(program: &str, option: &str) -> Option<String> {
    let output = Command::new(program).arg(option).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

/// Returns the date, UTC, like 2026-01-31.
pub fn today() -> String {
    let output = Command::new("date").args(["-u", "+%F"]).output();
    output.map_or_else(|_| "undated".to_owned(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}
