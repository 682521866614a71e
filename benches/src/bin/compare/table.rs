//! Tables in Markdown: medians, and ratios to the untraced run of the same round.

use crate::measure;
use crate::redis;
use crate::{Figures, Run};
use heapline_benches::machine::Machine;
use std::fmt::Write;

/// Returns the tables of a comparison.
pub fn markdown(machine: &Machine, runs: &[Run]) -> String {
    let rounds = runs.iter().map(|run| run.round).max().unwrap_or(0);
    let mut text = format!(
        "{}; {} cores; {:.0} GiB; Linux {}; {rounds} rounds, interleaved; medians\n\n",
        machine.cpu,
        machine.cores,
        gib(machine.memory_bytes),
        machine.kernel
    );
    for version in &machine.versions {
        text += &format!("- {version}\n");
    }
    text += &programs(runs);
    text += &services(runs);
    text += &failures(runs);
    text
}

fn failures(runs: &[Run]) -> String {
    let line = |run: &Run| match &run.figures {
        Figures::Failed { failed } => {
            Some(format!("- {} with {}, round {}: {failed}\n", run.workload, run.tool, run.round))
        }
        _ => None,
    };
    let lines: String = runs.iter().filter_map(line).collect();
    if lines.is_empty() { lines } else { format!("\nRuns that failed, and are in no median:\n\n{lines}") }
}

/// The runs of a workload with a tool, and the untraced runs of the workload.
struct Group<'a, F> {
    workload: &'a str,
    tool: &'a str,
    mine: Vec<(u32, &'a F)>,
    base: Vec<(u32, &'a F)>,
}

impl<'a, F> Group<'a, F> {
    /// Returns all groups, in the order of first runs. `pick` chooses a kind of figures.
    fn all(runs: &'a [Run], pick: fn(&Figures) -> Option<&F>) -> Vec<Group<'a, F>> {
        let of = |workload: &str, tool: &str| -> Vec<(u32, &'a F)> {
            let same = runs.iter().filter(|run| run.workload == workload && run.tool == tool);
            same.filter_map(|run| Some((run.round, pick(&run.figures)?))).collect()
        };
        let mut groups: Vec<Group<'a, F>> = Vec::new();
        for run in runs.iter().filter(|run| pick(&run.figures).is_some()) {
            let (workload, tool) = (run.workload.as_str(), run.tool.as_str());
            if !groups.iter().any(|g| g.workload == workload && g.tool == tool) {
                groups.push(Group { workload, tool, mine: of(workload, tool), base: of(workload, "base") });
            }
        }
        groups
    }

    fn column(&self, value: fn(&F) -> f64) -> f64 {
        median(self.mine.iter().map(|(_, figures)| value(figures)))
    }

    /// Returns the median of the ratios within each round. Effects common to a round cancel out.
    fn ratio(&self, value: fn(&F) -> f64) -> f64 {
        let base_of = |round: u32| self.base.iter().find(|(r, _)| *r == round).map(|(_, figures)| value(figures));
        median(self.mine.iter().filter_map(|(round, figures)| Some(value(figures) / base_of(*round)?)))
    }
}

fn programs(runs: &[Run]) -> String {
    let groups = Group::<measure::Figures>::all(runs, |figures| match figures {
        Figures::Program(figures) => Some(figures),
        _ => None,
    });
    let head = "\n| workload | tool | wall s | x base | target CPU s | tool CPU s | target peak MiB | tool peak MiB \
        | written MiB | until a report s | events | stacks |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";
    let mut text = if groups.is_empty() { String::new() } else { head.to_owned() };
    for group in &groups {
        let count = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |n| n.to_string());
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {:.3} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.2} | {} | {} | {} |",
            group.workload,
            group.tool,
            group.column(|f| f.target_wall_s),
            group.ratio(|f| f.target_wall_s),
            group.column(|f| f.target_cpu_s),
            group.column(|f| f.tool_cpu_s),
            group.column(|f| mib(f.target_peak_bytes)),
            group.column(|f| mib(f.tool_peak_bytes)),
            group.column(|f| mib(f.written_bytes)),
            seconds(group.column(|f| f.report_s.unwrap_or(f64::NAN))),
            count(group.mine[0].1.events),
            count(group.mine[0].1.stacks),
        );
    }
    text
}

fn services(runs: &[Run]) -> String {
    let groups = Group::<redis::Figures>::all(runs, |figures| match figures {
        Figures::Service(figures) => Some(figures),
        _ => None,
    });
    let head = "\n| service | tool | SET/s | x base | p99 ms | LPUSH/s | p99 ms | HSET/s | p99 ms | tool CPU s |\n\
        |---|---|---|---|---|---|---|---|---|---|\n";
    let mut text = if groups.is_empty() { String::new() } else { head.to_owned() };
    for group in &groups {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {:.0} | {:.2} | {:.2} | {:.0} | {:.2} | {:.0} | {:.2} | {:.2} |",
            group.workload,
            group.tool,
            group.column(|f| f.set_per_s),
            group.ratio(|f| f.set_per_s),
            group.column(|f| f.set_p99_ms),
            group.column(|f| f.lpush_per_s),
            group.column(|f| f.lpush_p99_ms),
            group.column(|f| f.hset_per_s),
            group.column(|f| f.hset_p99_ms),
            group.column(|f| f.tool_cpu_s),
        );
    }
    text
}

/// Formats seconds; "-" without a figure.
fn seconds(value: f64) -> String {
    if value.is_nan() { "-".to_owned() } else { format!("{value:.2}") }
}

/// Returns the median; NaN without values.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn gib(bytes: u64) -> f64 {
    mib(bytes) / 1024.0
}
