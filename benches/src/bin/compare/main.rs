//! Compares whole programs: alone, under Heapline, under the installed peers, and with our
//! collector at rest (the controls). The runs are interleaved, so a slowdown of the machine affects
//! all tools.
//!
//! Figures of each run:
//!
//! - target: wall time, CPU time, peak memory;
//! - tool: CPU time, peak memory, bytes written;
//! - time from the target's end until a report can be read.
//!
//! The target's output must equal the output of the untraced run. Raw figures go to `runs.json`,
//! medians to `table.md`; `docs/benchmarks.md` explains both.

mod measure;
mod redis;
mod table;
mod tool;
mod workload;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use heapline_benches::{crate_folder, machine};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tool::Tool;
use workload::Workload;

/// Compares whole programs alone, under Heapline, under its peers, and with the collector at rest
#[derive(Parser)]
struct Arguments {
    /// Rounds; each runs every tool once on every workload
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What to run
    #[arg(long, value_delimiter = ',', default_values_t = Workload::DEFAULT.map(str::to_owned))]
    workloads: Vec<String>,
    /// With what; tools that are not installed are left out with a note
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Tool::DEFAULT)]
    tools: Vec<Tool>,
    /// Folder for runs.json and table.md; by default benches/runs/DATE
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder of the programs `aggregator` and `report`; by default this program's own
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// A run of a workload with a tool.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Number of the round, from 1.
    pub round: u32,
    /// Name of the workload.
    pub workload: String,
    /// Name of the tool; `base` means no tool.
    pub tool: String,
    /// Measured figures: times in seconds, memory and files in bytes.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures of a run, by kind of workload.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Figures {
    /// A program that runs to its end.
    Program(measure::Figures),
    /// A service under load.
    Service(redis::Figures),
    /// A peer that failed.
    Failed {
        /// Reason of the failure.
        failed: String,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let programs = match &arguments.programs {
        // Some tools start in a separate folder, so the path must be absolute.
        Some(folder) => folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))?,
        None => own_folder()?,
    };
    let tools = available(&arguments.tools, &programs)?;
    let out = arguments.out.clone().unwrap_or_else(|| crate_folder().join("runs").join(machine::today()));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let runs = run_all(&arguments, &tools, &programs)?;
    let machine = machine::describe();
    let json = serde_json::json!({ "machine": machine, "runs": runs });
    write(&out.join("runs.json"), &serde_json::to_string_pretty(&json)?)?;
    let table = table::markdown(&machine, &runs);
    write(&out.join("table.md"), &table)?;
    print!("{table}");
    eprintln!("raw figures and table: {}", out.display());
    Ok(())
}

fn own_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find out where this program is")?;
    Ok(program.parent().context("a program is in a folder")?.to_owned())
}

fn available(wanted: &[Tool], programs: &Path) -> Result<Vec<Tool>> {
    let mut tools = Vec::new();
    for &tool in wanted {
        match tool.missing(programs) {
            None => tools.push(tool),
            Some(what) if tool.must_succeed() => {
                bail!(
                    "{what} is not there: build it first, cargo build --release -p heapline-aggregator -p heapline-tools"
                )
            }
            Some(what) => eprintln!("note: {tool} is left out, {what} is not installed"),
        }
    }
    ensure!(tools.contains(&Tool::Base), "the untraced run is what all others are compared with: add base to --tools");
    Ok(tools)
}

fn run_all(arguments: &Arguments, tools: &[Tool], programs: &Path) -> Result<Vec<Run>> {
    let scratch = tempfile::TempDir::new().context("cannot create a scratch folder")?;
    let mut runs = Vec::new();
    let (services, names): (Vec<_>, Vec<_>) = arguments.workloads.iter().partition(|name| *name == "redis");
    let workloads = names.iter().map(|name| Workload::prepare(name, scratch.path())).collect::<Result<Vec<_>>>()?;
    for round in 1..=arguments.rounds {
        for workload in &workloads {
            let mut untraced = None;
            for &tool in tools.iter().filter(|tool| tool.is_for(&workload.command)) {
                let measured = measure::run(workload, tool, programs, scratch.path())
                    .and_then(|(figures, output)| check_output(workload, tool, &mut untraced, output).map(|()| figures))
                    .map(|figures| (format!("{:.3} s", figures.target_wall_s), Figures::Program(figures)));
                runs.push(outcome(round, &workload.name, tool, measured)?);
            }
        }
        for name in &services {
            for &tool in tools.iter().filter(|tool| tool.is_for(&redis::COMMAND.map(str::to_owned))) {
                let measured = redis::run(tool, programs, scratch.path())
                    .map(|figures| (format!("SET {:.0}/s", figures.set_per_s), Figures::Service(figures)));
                runs.push(outcome(round, name, tool, measured)?);
            }
        }
    }
    Ok(runs)
}

/// Prints the result of a run. Only a peer may fail: the failure is then a result too.
fn outcome(round: u32, workload: &str, tool: Tool, measured: Result<(String, Figures)>) -> Result<Run> {
    let what = format!("round {round}: {workload} with {tool}");
    let (said, figures) = match measured {
        Ok(measured) => measured,
        Err(error) if !tool.must_succeed() => {
            let failed = format!("{error:#}");
            (format!("failed: {failed}"), Figures::Failed { failed })
        }
        Err(error) => return Err(error.context(what)),
    };
    eprintln!("{what}: {said}");
    Ok(Run { round, workload: workload.to_owned(), tool: tool.to_string(), figures })
}

/// Checks the program's output. A tool that changes the program's behaviour has no comparable
/// figures.
fn check_output(workload: &Workload, tool: Tool, untraced: &mut Option<Vec<u8>>, output: Vec<u8>) -> Result<()> {
    let output = workload.comparable(output);
    match untraced {
        None => *untraced = Some(output),
        Some(wanted) => ensure!(*wanted == output, "{} says something else under {tool}", workload.name),
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
