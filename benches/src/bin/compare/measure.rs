//! A run of a program: starts it, watches the target among the tool's processes, and computes the
//! figures.
//!
//! | Figure | Source |
//! | --- | --- |
//! | CPU time and peak memory of the target | /proc, every few milliseconds |
//! | CPU time of target and tool together | wait4, exact |
//! | CPU time of the tool | the difference |
//!
//! The last look at /proc comes just before the target's end.

use crate::tool::Tool;
use crate::workload::Workload;
use anyhow::{Context, Result, ensure};
use heapline_benches::process::{self, Ended, succeed};
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(4);

/// Figures of a run, in seconds and bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Time from the start of the tool to the end of the target.
    pub target_wall_s: f64,
    /// User and system time of the target.
    pub target_cpu_s: f64,
    /// User and system time of the tool's own processes.
    pub tool_cpu_s: f64,
    /// Largest resident memory of the target.
    pub target_peak_bytes: u64,
    /// Sum over the tool's processes of the largest resident memory.
    pub tool_peak_bytes: u64,
    /// Size of the files written by the tool.
    pub written_bytes: u64,
    /// Time from the end of the target to the end of a first report with cold caches. None for
    /// tools without a report.
    pub report_s: Option<f64>,
    /// Number of recorded calls (allocations and frees). None for tools without this number.
    pub events: Option<u64>,
    /// Number of distinct stacks. None for tools without this number.
    pub stacks: Option<u64>,
}

/// Runs `workload` under `tool`. Returns the figures and the target's output.
pub fn run(workload: &Workload, tool: Tool, programs: &Path, scratch: &Path) -> Result<(Figures, Vec<u8>)> {
    let folder = tempfile::TempDir::new_in(scratch)?;
    let output_file = folder.path().join("stdout");
    let mut command = tool.command(&workload.command, programs, folder.path())?;
    command.envs(workload.environment.iter().copied()).stdout(File::create(&output_file)?).stderr(Stdio::null());
    command.stdin(match &workload.input {
        Some(path) => Stdio::from(File::open(path).with_context(|| path.display().to_string())?),
        None => Stdio::null(),
    });
    let start = Instant::now();
    let child = command.spawn().context("cannot start it")?;
    let pid = child.id();
    let target = tool.target(&workload.command[0])?;
    let watched = std::thread::scope(|scope| {
        let disturbed = scope.spawn(|| tool.disturb(pid, programs, folder.path()));
        let watched = watch(child, &target, start);
        disturbed.join().expect("it does not panic")?;
        watched
    })?;
    ensure!(watched.status.success(), "it ended with {}", watched.status);
    let mut output = std::fs::read(&output_file)?;
    // heaptrack's script prints to the same stream as the program.
    if matches!(tool, Tool::Heaptrack | Tool::HeaptrackRaw) {
        output = without_heaptracks_words(&output);
    }
    if let Some(product) = &workload.product {
        output.extend(std::fs::read(product)?);
    }
    let figures = watched.figures(tool, programs, folder.path())?;
    Ok((figures, output))
}

/// Returns the program's own output, which stands between heaptrack's first and last lines.
fn without_heaptracks_words(output: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(output);
    let rest = text.split_once("starting application, this might take some time...\n").map_or(&*text, |(_, rest)| rest);
    let own = rest.rsplit_once("Heaptrack finished!").map_or(rest, |(own, _)| own);
    own.as_bytes().to_vec()
}

/// Returns the program's file, found like a shell does, with links resolved.
pub fn resolved(program: &str) -> Result<PathBuf> {
    let direct = Path::new(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|folder| folder.join(program));
    let found =
        if program.contains('/') { Some(direct.to_owned()) } else { candidates.into_iter().find(|p| p.is_file()) };
    found.and_then(|p| p.canonicalize().ok()).with_context(|| format!("{program} is not installed"))
}

/// Observations of a run.
pub struct Watched {
    pub status: ExitStatus,
    target_end: Duration,
    whole: Duration,
    target_cpu: Duration,
    all_cpu: Duration,
    target_peak: u64,
    tool_peak: u64,
}

/// Watches until the child has ended.
pub fn watch(child: Child, target: &Path, start: Instant) -> Result<Watched> {
    let root = child.id();
    let mut seen: Vec<Seen> = Vec::new();
    loop {
        sample(root, target, start.elapsed(), &mut seen);
        if let Some(Ended { status, cpu: all_cpu, .. }) = process::wait4(root, false)? {
            let whole = start.elapsed();
            let (targets, tools): (Vec<_>, Vec<_>) = seen.iter().partition(|s| s.is_target);
            let last = targets.last().context("the target was never seen: it is too short, or has another name")?;
            return Ok(Watched {
                status,
                // Without a tool the target is the child itself, whose end was just seen.
                target_end: if last.pid == root { whole } else { last.last_seen + INTERVAL / 2 },
                whole,
                target_cpu: if tools.is_empty() { all_cpu } else { last.cpu },
                all_cpu,
                target_peak: last.peak,
                tool_peak: tools.iter().map(|s| s.peak).sum(),
            });
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Last observation of a process.
struct Seen {
    pid: u32,
    is_target: bool,
    cpu: Duration,
    peak: u64,
    last_seen: Duration,
}

/// Reads every process from `root` downwards once.
fn sample(root: u32, target: &Path, now: Duration, seen: &mut Vec<Seen>) {
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        open.extend(process::children(pid));
        let (Some(cpu), Some(peak)) = (cpu_time(pid), process::memory_bytes(pid, "VmHWM")) else { continue };
        let is_target = std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == target);
        match seen.iter_mut().find(|s| s.pid == pid) {
            // Before exec a process is not yet the target. At its end a process has no program.
            Some(s) => {
                (s.is_target, s.cpu, s.peak, s.last_seen) = (s.is_target | is_target, cpu, peak.max(s.peak), now)
            }
            None => seen.push(Seen { pid, is_target, cpu, peak, last_seen: now }),
        }
    }
}

/// Returns the user and system time of all threads, from the kernel's ticks.
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // SAFETY: sysconf has no preconditions.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
    Some(Duration::from_millis(ticks * 1000 / per_second))
}

impl Watched {
    /// Makes the report, and computes the figures.
    pub fn figures(&self, tool: Tool, programs: &Path, folder: &Path) -> Result<Figures> {
        let cache = tempfile::TempDir::new_in(folder)?;
        let product = tool.product(folder)?;
        let report = match &product {
            Some(file) => tool.report(file, programs, cache.path())?,
            None => None,
        };
        let written_bytes = match &product {
            Some(file) => std::fs::metadata(file)?.len(),
            None => 0,
        };
        let counted = match (&product, tool) {
            (Some(file), Tool::Heapline) => Some(counted(file, programs)?),
            _ => None,
        };
        let after = self.whole.saturating_sub(self.target_end);
        Ok(Figures {
            target_wall_s: self.target_end.as_secs_f64(),
            target_cpu_s: self.target_cpu.as_secs_f64(),
            tool_cpu_s: self.all_cpu.saturating_sub(self.target_cpu).as_secs_f64(),
            target_peak_bytes: self.target_peak,
            tool_peak_bytes: self.tool_peak,
            written_bytes,
            report_s: report.map(|report| (after + report).as_secs_f64()),
            events: counted.map(|c| c.0),
            stacks: counted.map(|c| c.1),
        })
    }

    /// Returns the CPU seconds of all processes except the target.
    pub fn tool_cpu(&self) -> f64 {
        self.all_cpu.saturating_sub(self.target_cpu).as_secs_f64()
    }
}

/// Returns the numbers of events and distinct stacks of a snapshot. Fails unless the snapshot is
/// exact.
fn counted(snapshot: &Path, programs: &Path) -> Result<(u64, u64)> {
    let mut report = std::process::Command::new(programs.join("report"));
    report.arg(snapshot).args(["--format", "json", "--by", "traceback", "--at", "total", "--raw-frames"]);
    let json: serde_json::Value = serde_json::from_slice(&succeed(&mut report)?)?;
    let head = &json["snapshot"];
    let lost = head["lost"].as_object().is_some_and(|lost| lost.values().any(|n| n != 0));
    ensure!(!lost && head["contradictions"] == 0, "the run was not exact: {head}");
    let domains = json["domains"].as_array().context("report keeps its contract")?;
    let number = |domain: &serde_json::Value, name: &str| domain[name].as_u64().context("report keeps its contract");
    let events = domains.iter().try_fold(0, |sum, d| anyhow::Ok(sum + number(d, "allocs")? + number(d, "frees")?))?;
    let stacks = json["total"]["groups"].as_u64().context("report keeps its contract")?;
    Ok((events, stacks))
}
