//! Measures the growth of Heapline's cost with threads, frames, distinct stacks and live blocks.
//!
//! Each point of a curve is a workload, run once in every round: alone, then at once under
//! Heapline. The charts show medians over the rounds, with whiskers from the least to the greatest.
//!
//! | Output | Place |
//! | --- | --- |
//! | all measured figures | `runs.json` |
//! | medians | `medians.md` |
//! | charts, shown and explained in docs/benchmarks.md | docs/curves |
//!
//! Times are not asserted. A run with lost events or contradictions is stored, but is in no median.

#![deny(unsafe_code)]

mod chart;
mod charts;
mod plan;
mod run;
mod series;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use heapline_benches::machine::{self, Machine};
use heapline_benches::{crate_folder, process};
use plan::{Curve, Point};
use run::{Bench, Run};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Measures how Heapline's cost grows, and draws the curves
#[derive(Parser)]
struct Arguments {
    /// Rounds; each runs every point once alone and once under Heapline [default: 3, quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Curve::ALL)]
    curves: Vec<Curve>,
    /// Fewer calls, and only points that need less than 200 MiB: to see that it works
    #[arg(long)]
    quick: bool,
    /// Measure nothing: draw what this runs.json says
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "rounds", "curves", "out"])]
    redraw: Option<PathBuf>,
    /// Folder for runs.json and medians.md; by default benches/runs/DATE/curves
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder for the charts; by default docs/curves
    #[arg(long)]
    charts: Option<PathBuf>,
    /// Folder of the programs `aggregator` and `report`; by default this program's own
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// The stored result of a measurement.
#[derive(Serialize, Deserialize)]
struct Record {
    machine: Machine,
    /// Load of the machine before and after: runnable threads, averaged over a minute. Shows other
    /// activity.
    load: [f64; 2],
    runs: Vec<Run>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (record, folder) = match &arguments.redraw {
        Some(file) => (read(file)?, file.parent().unwrap_or(Path::new(".")).to_owned()),
        None => {
            let default = || crate_folder().join("runs").join(machine::today()).join("curves");
            let folder = arguments.out.clone().unwrap_or_else(default);
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            (measure(&arguments, &folder)?, folder)
        }
    };
    let charts = charts::all(&record.runs);
    let medians = charts::medians(&record.machine, record.load, &record.runs, &charts);
    write(&folder.join("medians.md"), &medians)?;
    print!("{medians}");
    let pictures = match arguments.charts {
        Some(folder) => folder,
        None => crate_folder().parent().context("the workspace is around it")?.join("docs/curves"),
    };
    std::fs::create_dir_all(&pictures).with_context(|| format!("cannot create {}", pictures.display()))?;
    for chart in charts.iter().filter(|chart| chart.has_points()) {
        write(&pictures.join(format!("{}.svg", chart.name)), &chart.draw()?)?;
    }
    eprintln!("raw figures and medians: {}; charts: {}", folder.display(), pictures.display());
    Ok(())
}

fn measure(arguments: &Arguments, folder: &Path) -> Result<Record> {
    let programs = match &arguments.programs {
        Some(folder) => folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))?,
        None => std::env::current_exe()?.parent().context("a program is in a folder")?.to_owned(),
    };
    for name in ["aggregator", "report"] {
        let is_there = programs.join(name).is_file();
        ensure!(
            is_there,
            "{name} is not there: build it first, cargo build --release -p heapline-{name}; report is of heapline-tools"
        );
    }
    let bench = Bench::prepare(programs)?;
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 1 } else { 3 });
    let before = process::load();
    let mut runs = Vec::new();
    for round in 1..=rounds {
        for point in arguments.curves.iter().flat_map(|&curve| Point::all(curve, arguments.quick)) {
            if let Some(missing) = process::memory_missing(point.needs_bytes()) {
                eprintln!("note: {point} is left out, it needs {} MiB more memory", missing >> 20);
                continue;
            }
            for &tool in point.curve.tools() {
                let run =
                    bench.run(round, point, tool).with_context(|| format!("round {round}: {point} with {tool}"))?;
                eprintln!("round {round}: {run}");
                runs.push(run);
            }
        }
        // Writing after every round keeps the finished rounds when the measurement is interrupted.
        let record = Record { machine: machine::describe(), load: [before, process::load()], runs };
        write(&folder.join("runs.json"), &serde_json::to_string_pretty(&record)?)?;
        runs = record.runs;
    }
    read(&folder.join("runs.json"))
}

fn read(file: &Path) -> Result<Record> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is none of ours", file.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
