//! The charts of docs/benchmarks.md, and their numbers as a table.

use crate::chart::{Chart, Scale};
use crate::plan::{Curve, Tool};
use crate::run::{Phase, Run};
use crate::series::Series;
use heapline_benches::machine::Machine;
use std::fmt::Write;

const MIB: f64 = (1u64 << 20) as f64;

/// Returns all charts. Charts of unmeasured curves have no points.
pub fn all(runs: &[Run]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for curve in Curve::ALL {
        charts.push(pairs(runs, curve));
        charts.push(processors(runs, curve));
    }
    charts.push(defining(runs));
    charts.push(block_bytes(runs));
    for curve in [Curve::Stacks, Curve::Live] {
        charts.push(answers(runs, curve));
        charts.push(sizes(runs, curve));
    }
    charts
}

fn churn(run: &Run) -> Option<&Phase> {
    run.phase("churn")
}

fn wall(run: &Run) -> Option<f64> {
    churn(run).map(Phase::wall_ns_per_pair)
}

fn target_cpu(run: &Run) -> Option<f64> {
    churn(run).map(|phase| phase.per_call(phase.target_cpu_s) * 2.0)
}

/// Returns the CPU nanoseconds of an aggregator thread for a pair of calls.
fn thread(name: &'static str) -> impl Fn(&Run) -> Option<f64> {
    move |run| {
        let phase = churn(run)?;
        Some(phase.per_call(*phase.tool_cpu_s.get(name)?) * 2.0)
    }
}

/// Returns powers of ten where the last point is far larger than the first.
fn scale(curve: Curve) -> Scale {
    match curve {
        Curve::Frames | Curve::Stacks => Scale::Log,
        Curve::Threads | Curve::Live => Scale::Linear,
    }
}

fn across(curve: Curve) -> &'static str {
    match curve {
        Curve::Threads => "threads of the target",
        Curve::Frames => "frames of each stack",
        Curve::Stacks => "distinct stacks",
        Curve::Live => "live blocks",
    }
}

/// Chart of wall time: the waiting time of the program's user.
fn pairs(runs: &[Run], curve: Curve) -> Chart {
    let (name, title) = match curve {
        Curve::Threads => ("threads", "Churn in N threads: wall time of a pair, all threads together"),
        Curve::Frames => ("frames", "Churn under deeper stacks: wall time of a pair"),
        Curve::Stacks => ("stacks", "More distinct stacks, a million live blocks: wall time of a pair"),
        Curve::Live => ("live", "More live blocks, 1,000 stacks: wall time of a pair"),
    };
    let mut lines = vec![
        Series::of(runs, "alone", curve, Tool::Base, wall),
        Series::of(runs, "Heapline", curve, Tool::Heapline, wall),
    ];
    if curve == Curve::Frames {
        lines.push(Series::of(runs, "all frames kept", curve, Tool::HeaplineAllFrames, wall));
    }
    let scale = scale(curve);
    Chart { name, title, across: across(curve), up: "ns a pair", scale, lines }
}

/// Chart of CPU time: the cost, independent of other users of the machine.
fn processors(runs: &[Run], curve: Curve) -> Chart {
    let (name, title) = match curve {
        Curve::Threads => ("threads-cpu", "Churn in N threads: CPU time of a pair, by where"),
        Curve::Frames => ("frames-cpu", "Churn under deeper stacks: CPU time of a pair, by where"),
        Curve::Stacks => ("stacks-cpu", "More distinct stacks: CPU time of a pair, by where"),
        Curve::Live => ("live-cpu", "More live blocks: CPU time of a pair, by where"),
    };
    let mut lines = vec![
        Series::of(runs, "the program alone", curve, Tool::Base, target_cpu),
        Series::added(runs, "added in it", curve, Tool::Heapline, target_cpu),
        Series::of(runs, "table's thread", curve, Tool::Heapline, thread("table")),
        Series::of(runs, "drain's thread", curve, Tool::Heapline, thread("drain")),
    ];
    if curve == Curve::Frames {
        lines.push(Series::added(runs, "all frames: in it", curve, Tool::HeaplineAllFrames, target_cpu));
    }
    let scale = scale(curve);
    Chart { name, title, across: across(curve), up: "CPU ns a pair", scale, lines }
}

/// Chart of the cost of new stacks.
fn defining(runs: &[Run]) -> Chart {
    let per_stack = |run: &Run| run.phase("define").map(|phase| phase.per_call(phase.target_cpu_s) * 2.0);
    let table = |run: &Run| {
        let phase = run.phase("define")?;
        Some(phase.per_call(phase.tool_cpu_s()) * 2.0).filter(|&ns| ns > 0.0)
    };
    let curve = Curve::Stacks;
    Chart {
        name: "stacks-new",
        title: "A pair under a stack that is new: CPU time",
        across: across(curve),
        up: "CPU ns a stack",
        scale: Scale::Log,
        lines: vec![
            Series::of(runs, "alone", curve, Tool::Base, per_stack),
            Series::of(runs, "Heapline, in it", curve, Tool::Heapline, per_stack),
            Series::of(runs, "Heapline, outside", curve, Tool::Heapline, table),
        ],
    }
}

/// Chart of the aggregator's memory for a block.
fn block_bytes(runs: &[Run]) -> Chart {
    let grown = |bytes: fn(&Phase) -> u64| {
        move |run: &Run| {
            let (before, after) = (run.phase("define")?, run.phase("churn")?);
            Some(bytes(after).saturating_sub(bytes(before)) as f64 / run.x as f64)
        }
    };
    let curve = Curve::Live;
    Chart {
        name: "live-bytes",
        title: "Resident memory for a live block",
        across: across(curve),
        up: "bytes a block",
        scale: Scale::Log,
        lines: vec![
            Series::of(runs, "the program", curve, Tool::Base, grown(|phase| phase.target_bytes)),
            Series::of(runs, "aggregator", curve, Tool::Heapline, grown(|phase| phase.tool_bytes)),
        ],
    }
}

fn answers(runs: &[Run], curve: Curve) -> Chart {
    let (name, title) = match curve {
        Curve::Stacks => ("stacks-answers", "More distinct stacks: how long answers take"),
        _ => ("live-answers", "More live blocks: how long answers take"),
    };
    let line = |name, figure: fn(&Run) -> Option<f64>| Series::of(runs, name, curve, Tool::Heapline, figure);
    let lines = vec![
        line("ctl snapshot", |run| Some(run.answers.as_ref()?.snapshot_s)),
        line("exit to end", |run| Some(run.answers.as_ref()?.end_s)),
        line("report", |run| Some(run.snapshot.as_ref()?.report_s)),
    ];
    Chart { name, title, across: across(curve), up: "seconds", scale: Scale::Log, lines }
}

fn sizes(runs: &[Run], curve: Curve) -> Chart {
    let (name, title) = match curve {
        Curve::Stacks => ("stacks-sizes", "More distinct stacks: memory and file"),
        _ => ("live-sizes", "More live blocks: memory and file"),
    };
    let line = |name, figure: fn(&Run) -> Option<f64>| Series::of(runs, name, curve, Tool::Heapline, figure);
    let lines = vec![
        line("aggregator, tracing", |run| Some(run.phase("churn")?.tool_bytes as f64 / MIB)),
        line("aggregator, snapshot", |run| Some(run.answers.as_ref()?.tool_peak_bytes as f64 / MIB)),
        line("report", |run| Some(run.snapshot.as_ref()?.report_peak_bytes as f64 / MIB)),
        line("snapshot's file", |run| Some(run.snapshot.as_ref()?.bytes as f64 / MIB)),
    ];
    Chart { name, title, across: across(curve), up: "MiB", scale: Scale::Log, lines }
}

/// Returns the numbers of all charts, as Markdown.
pub fn medians(machine: &Machine, load: [f64; 2], runs: &[Run], charts: &[Chart]) -> String {
    let mut text = format!(
        "{}; {} cores; {:.0} GiB; Linux {}; load before and after {:.1} and {:.1}; medians (least to greatest)\n",
        machine.cpu,
        machine.cores,
        machine.memory_bytes as f64 / MIB / 1024.0,
        machine.kernel,
        load[0],
        load[1]
    );
    for run in runs.iter().filter(|run| !run.is_exact()) {
        let _ = write!(text, "\nRound {}, left out: {run}\n", run.round);
    }
    for chart in charts.iter().filter(|chart| chart.has_points()) {
        let _ = write!(text, "\n## {} ({})\n\n| {} |", chart.title, chart.up, chart.across);
        for line in &chart.lines {
            let _ = write!(text, " {} |", line.name);
        }
        text += "\n| --- |";
        text += &" --- |".repeat(chart.lines.len());
        let mut places: Vec<f64> = chart.lines.iter().flat_map(|line| line.points.iter().map(|p| p.x)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        for x in places {
            let _ = write!(text, "\n| {x} |");
            for line in &chart.lines {
                let _ = match line.points.iter().find(|p| p.x == x) {
                    Some(p) => write!(text, " {} ({} to {}) |", brief(p.median), brief(p.least), brief(p.most)),
                    None => write!(text, " |"),
                };
            }
        }
        text.push('\n');
    }
    text
}

/// Formats a number with about three digits.
fn brief(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 4,
    };
    format!("{value:.places$}")
}
