//! A run of a point: starts the workload, follows the phases, questions the aggregator, and makes a
//! report.

use crate::plan::{Curve, Point, Tool};
use anyhow::{Context, Result, bail, ensure};
use heapline_benches::crate_folder;
use heapline_benches::process::{self, Cpu, Ended, succeed};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time between two samples of the aggregator's threads, for a workload without stops.
const INTERVAL: Duration = Duration::from_millis(5);

/// Figures of a run of a point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Number of the round, from 1.
    pub round: u32,
    /// Curve of the point.
    pub curve: Curve,
    /// Position on the curve.
    pub x: u64,
    /// Tool around the workload.
    pub tool: Tool,
    /// Phases of the workload, in order.
    pub phases: Vec<Phase>,
    /// Times of answers, only for the workload that stops for questions.
    pub answers: Option<Answers>,
    /// Facts from the snapshot at the end.
    pub snapshot: Option<Snapshot>,
}

/// A part of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    /// Number of calls of malloc and free.
    pub calls: u64,
    /// Wall time, measured by the program.
    pub wall_s: f64,
    /// CPU time of the program, with the collector.
    pub target_cpu_s: f64,
    /// CPU time of the aggregator, by thread name.
    pub tool_cpu_s: BTreeMap<String, f64>,
    /// Time from the end of the phase until the aggregator answered for the whole phase.
    pub settled_s: f64,
    /// Resident memory of the target at the end.
    pub target_bytes: u64,
    pub tool_bytes: u64,
}

/// Times of answers, in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answers {
    /// Time of `ctl snapshot`, until the file is complete.
    pub snapshot_s: f64,
    /// Largest resident memory of the aggregator, this snapshot included.
    pub tool_peak_bytes: u64,
    /// Time from the go-ahead after the last phase to the end of the aggregator, which writes the
    /// last snapshot and frees all tables.
    pub end_s: f64,
}

/// The snapshot at the end, and the report about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    pub bytes: u64,
    /// Time of a first report, with cold symbol caches.
    pub report_s: f64,
    pub report_peak_bytes: u64,
    pub events: u64,
    pub stacks: u64,
    /// Number of lost events and contradictions. A run with a number above 0 is in no median.
    #[serde(default)]
    pub wrong: u64,
    /// Notes of the snapshot, for example about waiting threads.
    pub notes: Vec<String>,
}

impl Phase {
    /// Returns the wall time of a pair of calls in nanoseconds, all threads together.
    pub fn wall_ns_per_pair(&self) -> f64 {
        self.per_call(self.wall_s) * 2.0
    }

    /// Converts seconds of the phase to nanoseconds per call.
    pub fn per_call(&self, seconds: f64) -> f64 {
        seconds * 1e9 / self.calls as f64
    }

    /// Returns the CPU seconds of the aggregator.
    pub fn tool_cpu_s(&self) -> f64 {
        self.tool_cpu_s.values().sum()
    }
}

impl Run {
    /// Whether the snapshot reports no missing events and no contradictions.
    pub fn is_exact(&self) -> bool {
        self.snapshot.as_ref().is_none_or(|snapshot| snapshot.wrong == 0)
    }

    /// Returns the phase with the given name.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }
}

/// The built programs, and a scratch folder for their files.
pub struct Bench {
    scratch: tempfile::TempDir,
    programs: PathBuf,
}

impl Bench {
    /// Builds the workloads.
    pub fn prepare(programs: PathBuf) -> Result<Bench> {
        let scratch = tempfile::TempDir::new().context("cannot create a scratch folder")?;
        for name in ["churn", "scale"] {
            let source = crate_folder().join("workloads").join(format!("{name}.c"));
            process::compile(&source, &scratch.path().join(name))?;
        }
        Ok(Bench { scratch, programs })
    }

    /// Runs a point once.
    pub fn run(&self, round: u32, point: Point, tool: Tool) -> Result<Run> {
        let (program, arguments) = point.command();
        let file = self.scratch.path().join("out.snap.zst");
        let mut command = self.command(&self.scratch.path().join(program), tool, &file);
        command.args(arguments.iter().map(u64::to_string));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start it")?;
        let followed = match program {
            "churn" => churn(&mut child, tool, &arguments).map(|phase| (vec![phase], None)),
            _ => self.in_phases(&mut child, tool),
        };
        if followed.is_err() {
            // The child waits for input that will not come.
            let _ = child.kill();
        }
        let (phases, answers) = followed?;
        let snapshot = if tool == Tool::Base { None } else { Some(self.read(&file)?) };
        Ok(Run { round, curve: point.curve, x: point.x, tool, phases, answers, snapshot })
    }

    fn command(&self, program: &Path, tool: Tool, file: &Path) -> Command {
        if tool == Tool::Base {
            return Command::new(program);
        }
        let mut command = Command::new(self.programs.join("aggregator"));
        command.args(["run", "--no-follow"]);
        if tool == Tool::HeaplineAllFrames {
            command.args(["--nframe", "2000"]);
        }
        command.arg("-o").arg(file).arg("--").arg(program);
        command
    }

    /// Follows scale.c, which stops after each phase until told to continue.
    fn in_phases(&self, child: &mut Child, tool: Tool) -> Result<(Vec<Phase>, Option<Answers>)> {
        let is_traced = tool != Tool::Base;
        let pid = child.id();
        let mut lines = BufReader::new(child.stdout.take().context("it is a pipe")?).lines();
        let mut go_on = child.stdin.take().context("it is a pipe")?;
        let (mut phases, mut answers, mut cpu) = (Vec::new(), None, Cpu::default());
        let mut last_word = Instant::now();
        while let Some(line) = lines.next().transpose()? {
            let said = Instant::now();
            let target = if is_traced { *process::children(pid).first().context("it has a child")? } else { pid };
            let mut now = cpu.clone();
            let mut phase = said_phase(&line)?;
            if is_traced {
                self.ask(target, &["stats"])?;
                phase.settled_s = said.elapsed().as_secs_f64();
                now.sample(pid);
                phase.tool_cpu_s = now.since(&cpu);
                phase.tool_bytes = memory_bytes(pid, "VmRSS");
            }
            phase.target_bytes = memory_bytes(target, "VmRSS");
            if is_traced && phase.name == "churn" {
                let begun = Instant::now();
                self.ask(target, &["snapshot", "-o", &self.scratch.path().join("now.snap.zst").to_string_lossy()])?;
                let snapshot_s = begun.elapsed().as_secs_f64();
                let tool_peak_bytes = memory_bytes(pid, "VmHWM");
                answers = Some(Answers { snapshot_s, tool_peak_bytes, end_s: 0.0 });
            }
            cpu = now;
            phases.push(phase);
            last_word = Instant::now();
            go_on.write_all(b"\n")?;
        }
        ended(child, true)?;
        if let Some(answers) = &mut answers {
            answers.end_s = last_word.elapsed().as_secs_f64();
        }
        Ok((phases, answers))
    }

    fn ask(&self, target: u32, what: &[&str]) -> Result<()> {
        let mut ask = Command::new(self.programs.join("aggregator"));
        succeed(ask.args(["ctl", &target.to_string()]).args(what)).map(drop)
    }

    /// Makes two reports on the snapshot: first as text for a person, then as JSON for a program.
    fn read(&self, file: &Path) -> Result<Snapshot> {
        let bytes = std::fs::metadata(file).context("it has left no snapshot")?.len();
        let cache = tempfile::TempDir::new_in(self.scratch.path())?;
        let mut report = Command::new(self.programs.join("report"));
        report.arg(file).args(["--by", "lineno"]).env("XDG_CACHE_HOME", cache.path());
        let text_file = self.scratch.path().join("report.txt");
        report.stdin(Stdio::null()).stdout(File::create(&text_file)?).stderr(Stdio::null());
        let begun = Instant::now();
        let child = report.spawn().context("the report")?;
        let ended = ended(&child, true).context("the report")?.context("it was waited for")?;
        let report_s = begun.elapsed().as_secs_f64();
        let text = std::fs::read_to_string(&text_file)?;
        let notes = text.lines().filter_map(|line| line.strip_prefix("Note: ")).map(str::to_owned);
        let mut report = Command::new(self.programs.join("report"));
        report.arg(file).args([
            "--format",
            "json",
            "--by",
            "traceback",
            "--at",
            "total",
            "--raw-frames",
            "--limit",
            "1",
        ]);
        let json: serde_json::Value = serde_json::from_slice(&succeed(&mut report)?)?;
        let head = &json["snapshot"];
        let sum =
            |of: &serde_json::Value| of.as_object().map_or(0, |all| all.values().filter_map(|n| n.as_u64()).sum());
        let wrong =
            sum(&head["lost"]) + head["contradictions"].as_u64().unwrap_or_else(|| sum(&head["contradictions"]));
        let calls = |domain: &serde_json::Value| Some(domain["allocs"].as_u64()? + domain["frees"].as_u64()?);
        let events = json["domains"].as_array().and_then(|all| all.iter().map(calls).sum::<Option<u64>>());
        Ok(Snapshot {
            bytes,
            report_s,
            report_peak_bytes: ended.peak_bytes,
            events: events.context("report keeps its contract")?,
            stacks: json["total"]["groups"].as_u64().context("report keeps its contract")?,
            wrong,
            notes: notes.collect(),
        })
    }
}

/// Parses a line of a workload: "PHASE CALLS SECONDS CPU_SECONDS".
fn said_phase(line: &str) -> Result<Phase> {
    let words: Vec<&str> = line.split(' ').collect();
    let [name, calls, wall_s, target_cpu_s] = words[..] else { bail!("the workload says: {line}") };
    Ok(Phase {
        name: name.to_owned(),
        calls: calls.parse()?,
        wall_s: wall_s.parse()?,
        target_cpu_s: target_cpu_s.parse()?,
        tool_cpu_s: BTreeMap::new(),
        settled_s: 0.0,
        target_bytes: 0,
        tool_bytes: 0,
    })
}

/// Follows churn.c, which runs without stops and prints the time of a pair for each thread.
fn churn(child: &mut Child, tool: Tool, arguments: &[u64]) -> Result<Phase> {
    let pid = child.id();
    let mut cpu = Cpu::default();
    let (mut tool_bytes, mut target_bytes) = (0, 0);
    let ended = loop {
        if tool == Tool::Base {
            target_bytes = memory_bytes(pid, "VmHWM").max(target_bytes);
        } else {
            cpu.sample(pid);
            tool_bytes = memory_bytes(pid, "VmHWM").max(tool_bytes);
            let target = process::children(pid).first().map_or(0, |&target| memory_bytes(target, "VmHWM"));
            target_bytes = target.max(target_bytes);
        }
        if let Some(ended) = ended(child, false)? {
            break ended;
        }
        std::thread::sleep(INTERVAL);
    };
    let mut said = String::new();
    child.stdout.take().context("it is a pipe")?.read_to_string(&mut said)?;
    let per_pair = said.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    let per_pair = per_pair.with_context(|| format!("the workload says: {said}"))?;
    let [threads, pairs, ..] = arguments else { bail!("churn has four arguments") };
    let tool_cpu_s = cpu.since(&Cpu::default());
    Ok(Phase {
        name: "churn".to_owned(),
        calls: 2 * threads * pairs,
        wall_s: per_pair * *pairs as f64 / 1e9,
        target_cpu_s: ended.cpu.as_secs_f64() - tool_cpu_s.values().sum::<f64>(),
        tool_cpu_s,
        settled_s: 0.0,
        target_bytes,
        tool_bytes,
    })
}

/// Returns how the process ended; fails unless the process ended well.
fn ended(child: &Child, waits: bool) -> Result<Option<Ended>> {
    let ended = process::wait4(child.id(), waits)?;
    if let Some(Ended { status, .. }) = ended {
        ensure!(status.success(), "it ended with {status}");
    }
    Ok(ended)
}

/// Returns the memory of a process; 0 for an ended process.
fn memory_bytes(pid: u32, line: &str) -> u64 {
    process::memory_bytes(pid, line).unwrap_or(0)
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let churned = self.phase("churn").map_or(f64::NAN, Phase::wall_ns_per_pair);
        write!(f, "{:?} {} with {}: {churned:.0} ns a pair", self.curve, self.x, self.tool)?;
        if self.is_exact() { Ok(()) } else { write!(f, ", not exact") }
    }
}
