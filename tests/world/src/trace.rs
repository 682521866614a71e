//! Heapline's own judgement of its numbers: `report --format json` of every snapshot of a run.

use crate::laboratory::{Mode, Traces, output};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Most snapshots read of a run. A run with more processes is judged by these.
const READ_AT_MOST: usize = 100;

/// Value of a trace's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", content = "why", rename_all = "kebab-case")]
pub enum Worth {
    /// The numbers are exact.
    Exact,
    /// The numbers are estimates from samples, and no sample is lost.
    Estimates,
    /// The numbers are exact for memory seen. The causes of memory not seen are named.
    Qualified(String),
    /// The trace says that its numbers are not exact.
    NotExact(String),
    /// Nothing was recorded, for this reason.
    Nothing(String),
    /// Heapline did not trace, for this reason.
    Refused(String),
    /// A snapshot is missing or cannot be read.
    Unreadable(String),
}

/// Counts of the native domain, as valgrind counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Allocations.
    pub allocs: u64,
    /// Frees.
    pub frees: u64,
    /// Bytes requested.
    pub bytes: u64,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} allocations, {} frees, {} bytes", self.allocs, self.frees, self.bytes)
    }
}

impl Worth {
    /// Whether the trace claims the program's counts: exact counts, or none for a program without
    /// allocations.
    pub fn claims_counts(&self) -> bool {
        match self {
            Worth::Exact => true,
            Worth::Nothing(why) => why.contains("made no allocation"),
            _ => false,
        }
    }
}

/// Judgement and counts from the snapshots of a run.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Value of the numbers.
    pub worth: Worth,
    /// Counts of the native domain, if the run has a single snapshot.
    pub usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Report {
    snapshot: Snapshot,
    domains: Vec<Domain>,
}

#[derive(Deserialize)]
struct Snapshot {
    command: String,
    end: String,
    lost: BTreeMap<String, u64>,
    contradictions: u64,
    #[serde(default)]
    unseen: Vec<Unseen>,
}

/// A cause of memory not seen, as named in a snapshot.
#[derive(Deserialize)]
struct Unseen {
    name: String,
}

#[derive(Deserialize)]
struct Domain {
    domain: String,
    allocs: u64,
    frees: u64,
    allocated_bytes: u64,
}

impl Trace {
    /// Reads the snapshots of a run.
    pub fn read(report: &Path, traces: &Traces, mode: Mode) -> Trace {
        match Trace::try_read(report, traces, mode) {
            Ok(trace) => trace,
            Err(error) => Trace { worth: Worth::Unreadable(format!("{error:#}")), usage: None },
        }
    }

    fn try_read(report: &Path, traces: &Traces, mode: Mode) -> Result<Trace> {
        if traces.refused {
            let said = traces.said.last().map_or("without a word", String::as_str);
            return Ok(Trace { worth: Worth::Refused(said.to_owned()), usage: None });
        }
        if traces.snapshots.is_empty() {
            bail!("no snapshot; it says: {}", traces.said.join("; "));
        }
        let read = traces.snapshots.iter().take(READ_AT_MOST).map(|snapshot| read(report, snapshot));
        let reports: Vec<Report> = read.collect::<Result<_>>()?;
        let usage = match reports.as_slice() {
            [one] => Some(one.usage()),
            _ => None,
        };
        Ok(Trace { worth: worth(&reports, traces, mode), usage })
    }
}

fn worth(reports: &[Report], traces: &Traces, mode: Mode) -> Worth {
    let wrong: Vec<String> = reports.iter().filter_map(Report::wrong).collect();
    if !wrong.is_empty() {
        return Worth::NotExact(wrong.join("; "));
    }
    let said = |mark: &str| traces.said.iter().find(|line| line.starts_with(mark) || line.contains(mark)).cloned();
    if let Some(line) = said("NOT EXACT").or_else(|| said("TRACING ENDED EARLY")) {
        return Worth::NotExact(line);
    }
    if let (Some(line), false) = (said("NOTHING WAS RECORDED"), reports.iter().any(Report::has_blocks)) {
        let reason = line.split_once(": ").map_or(line.as_str(), |(_, reason)| reason);
        return Worth::Nothing(reason.to_owned());
    }
    let unseen: BTreeSet<&str> = reports.iter().flat_map(Report::unseen).collect();
    if !unseen.is_empty() {
        return Worth::Qualified(Vec::from_iter(unseen).join(", "));
    }
    if let Some(line) = said("could not be followed").or_else(|| said("were not recorded")) {
        return Worth::Qualified(line);
    }
    match mode {
        Mode::Sample => Worth::Estimates,
        Mode::Run | Mode::Attach => Worth::Exact,
    }
}

fn read(report: &Path, snapshot: &Path) -> Result<Report> {
    let path = |path: &Path| path.display().to_string();
    // A report grouped by size looks up no symbols.
    let options = ["--format", "json", "--by", "size", "--limit", "1"].map(str::to_owned);
    let argv = [vec![path(report), path(snapshot)], options.to_vec()].concat();
    let answer = output(&argv, Path::new("/"), Duration::from_secs(120))?;
    if answer.status != Some(0) {
        bail!("report fails on {}: {}", path(snapshot), String::from_utf8_lossy(&answer.stderr).trim());
    }
    serde_json::from_slice(&answer.stdout).with_context(|| format!("report of {}", path(snapshot)))
}

impl Report {
    fn usage(&self) -> Usage {
        let native = self.domains.iter().find(|domain| domain.domain == "native");
        native.map_or(Usage { allocs: 0, frees: 0, bytes: 0 }, |native| Usage {
            allocs: native.allocs,
            frees: native.frees,
            bytes: native.allocated_bytes,
        })
    }

    /// Whether there are blocks of an allocator, and not only mappings.
    fn has_blocks(&self) -> bool {
        self.domains.iter().any(|domain| !domain.domain.starts_with("mmap") && domain.allocs > 0)
    }

    fn name(&self) -> &str {
        let program = self.snapshot.command.split(' ').next().unwrap_or("");
        program.rsplit('/').next().unwrap_or(program)
    }

    /// Causes of wrong numbers, with the process's name; none if the numbers are right.
    fn wrong(&self) -> Option<String> {
        let mut parts: Vec<String> = self
            .snapshot
            .lost
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(cause, n)| format!("{n} lost ({cause})"))
            .collect();
        if self.snapshot.contradictions > 0 {
            parts.push(format!("{} contradictions", self.snapshot.contradictions));
        }
        if self.snapshot.end == "stalled" {
            parts.push("tracing ended early".to_owned());
        }
        (!parts.is_empty()).then(|| format!("{}: {}", self.name(), parts.join(", ")))
    }

    /// Names of the causes of memory not seen.
    fn unseen(&self) -> impl Iterator<Item = &str> {
        self.snapshot.unseen.iter().map(|unseen| unseen.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn report(change: impl Fn(&mut Value)) -> Report {
        let mut value = json!({
            "snapshot": {"command": "/usr/bin/ls --version", "end": "exited", "lost": {}, "contradictions": 0},
            "domains": [{"domain": "native", "allocs": 3, "frees": 2, "allocated_bytes": 100}],
        });
        change(&mut value);
        serde_json::from_value(value).expect("a report")
    }

    fn worth_of(reports: &[Report], said: &[&str], mode: Mode) -> Worth {
        let said = said.iter().map(|&line| line.to_owned()).collect();
        worth(reports, &Traces { said, ..Traces::default() }, mode)
    }

    #[test]
    fn a_trace_without_loss_is_exact_or_an_estimate() {
        let reports = [report(|_| ()), report(|r| r["snapshot"]["unseen"] = json!([]))];
        assert_eq!(worth_of(&reports, &["12 KiB in 3 blocks live"], Mode::Run), Worth::Exact);
        assert_eq!(worth_of(&reports, &[], Mode::Sample), Worth::Estimates);
    }

    #[test]
    fn loss_in_any_process_is_named_and_goes_before_what_is_not_seen() {
        let unseen = report(|r| r["snapshot"]["unseen"] = json!([{"name": "V8's heap"}, {"name": "mimalloc"}]));
        let again = report(|r| r["snapshot"]["unseen"] = json!([{"name": "mimalloc"}]));
        assert_eq!(worth_of(&[unseen, again], &[], Mode::Run), Worth::Qualified("V8's heap, mimalloc".to_owned()));
        let lost = report(|r| r["snapshot"]["lost"] = json!({"slots": 4}));
        let both = [report(|r| r["snapshot"]["unseen"] = json!([{"name": "x"}])), lost];
        assert_eq!(worth_of(&both, &[], Mode::Run), Worth::NotExact("ls: 4 lost (slots)".to_owned()));
        let contradicted = report(|r| r["snapshot"]["contradictions"] = json!(2));
        assert_eq!(worth_of(&[contradicted], &[], Mode::Sample), Worth::NotExact("ls: 2 contradictions".to_owned()));
    }

    #[test]
    fn a_reason_for_no_records_is_kept() {
        let said = ["0 B in 0 blocks live", "NOTHING WAS RECORDED, but what it mapped (--domain mmap): it is static"];
        let empty = report(|r| r["domains"][0]["domain"] = json!("mmap"));
        assert_eq!(worth_of(&[empty], &said, Mode::Run), Worth::Nothing("it is static".to_owned()));
        assert_eq!(worth_of(&[report(|_| ())], &said, Mode::Run), Worth::Exact, "another process has records");
    }
}
