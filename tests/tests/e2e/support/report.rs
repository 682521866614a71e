//! Parsed output of `report --format json`. The fields are the contract in `docs/formats.md`, and
//! no other fields are accepted.

use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    #[serde(rename = "heapline_report")]
    pub version: u32,
    pub snapshot: Snapshot,
    pub own: Own,
    pub domains: Vec<Domain>,
    pub view: String,
    pub by: String,
    pub at: String,
    pub instant: Option<Instant>,
    pub since: Option<Instant>,
    pub ages: Option<Ages>,
    pub survived: Option<Range>,
    pub rounding: Option<Rounding>,
    pub cumulative: bool,
    pub total: Total,
    pub stats: Vec<Stat>,
}

/// An instant of the history, and the step that ends with it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instant {
    pub time: String,
    pub step_begin: String,
    pub step_milliseconds: u64,
}

/// Bounds of ages: `--older-than`, `--younger-than`, `--by age`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ages {
    pub older_than: Option<Bound>,
    pub younger_than: Option<Bound>,
    #[serde(default)]
    pub classes: Vec<Bound>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    pub milliseconds: u64,
    pub answered_milliseconds: u64,
    pub step_milliseconds: u64,
    pub time: String,
}

/// What is unused by rounding: `--by size`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounding {
    pub allocator: Option<String>,
    pub unused: Option<u64>,
    pub unknown_blocks: Option<u64>,
    pub unknown: Option<String>,
}

/// What was allocated in a range of time, and still lives at the snapshot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub born_after: String,
    pub born_until: String,
    pub size: u64,
    pub count: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survived {
    pub size: u64,
    pub count: u64,
}

/// Churn of a group: `--churn`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    pub temporary: Option<u64>,
    pub allocations_per_second: f64,
    pub within_step: u64,
    pub ended: Vec<u64>,
}

/// A report of several processes: `report --tree --format json`.
#[derive(Debug, Deserialize)]
pub struct TreeReport {
    pub processes: Vec<Process>,
    pub domains: Vec<Domain>,
    pub stats: Vec<Stat>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    pub parent: Option<u32>,
    pub birth: Option<String>,
    pub command: String,
    pub end: String,
    pub inherited_blocks: Option<u64>,
    pub domain: String,
    pub current: u64,
    pub peak: u64,
    pub blocks: u64,
    pub allocs: u64,
    pub frees: u64,
    pub allocated_bytes: u64,
}

impl TreeReport {
    pub fn native(&self) -> &Domain {
        native(&self.domains)
    }
}

/// Output of `ctl PID stats --format json`: the first parts of a report, without an end.
#[derive(Debug, Deserialize)]
pub struct Stats {
    pub snapshot: LiveSnapshot,
    pub domains: Vec<Domain>,
    pub own: Own,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub pid: u32,
    pub command: String,
    pub taken_at: String,
    pub mode: String,
    pub unseen: Vec<serde_json::Value>,
    pub sample_interval: u64,
    pub nframe: u32,
    pub end: String,
    pub lost: BTreeMap<String, u64>,
    pub contradictions: u64,
    pub untracked_frees: u64,
}

#[derive(Debug, Deserialize)]
pub struct LiveSnapshot {
    pub pid: u32,
    pub mode: String,
    pub sample_interval: u64,
    pub nframe: u32,
    pub lost: BTreeMap<String, u64>,
    pub contradictions: u64,
    pub untracked_frees: u64,
    pub end: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Own {
    pub target_bytes: u64,
    pub aggregator_bytes: u64,
    /// Only in the output of `ctl stats`.
    #[serde(default)]
    pub tracemalloc_queries: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    pub domain: String,
    pub current: u64,
    pub peak: u64,
    pub blocks: u64,
    pub allocs: u64,
    pub frees: u64,
    pub allocated_bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Total {
    pub groups: u64,
    pub size: u64,
    pub count: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stat {
    pub size: u64,
    pub count: u64,
    pub size_diff: Option<i64>,
    pub count_diff: Option<i64>,
    pub change: Option<String>,
    pub growth: Option<Growth>,
    pub churn: Option<Churn>,
    pub survived: Option<Survived>,
    pub usable: Option<u64>,
    #[serde(default)]
    pub key: serde_json::Value,
    #[serde(default)]
    pub traceback: Vec<Frame>,
    pub blamed: Option<usize>,
    pub total_nframe: Option<u64>,
}

/// Growth of a group: `--leaks`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Growth {
    pub bytes_per_hour: f64,
    pub certainty: f64,
    pub series: Vec<u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    pub filename: String,
    pub lineno: u64,
    pub function: Option<String>,
    pub module: Option<String>,
    pub address: Option<String>,
    pub walked: Option<String>,
}

impl Frame {
    /// The file's name without the folder.
    pub fn file(&self) -> &str {
        self.filename.rsplit('/').next().unwrap_or_default()
    }
}

impl Stat {
    /// The frame of the allocating call.
    pub fn most_recent(&self) -> &Frame {
        self.traceback.last().expect("a statistic of frames has one")
    }
}

fn native(domains: &[Domain]) -> &Domain {
    domains.iter().find(|d| d.domain == "native").expect("there is a native domain")
}

impl Report {
    pub fn native(&self) -> &Domain {
        native(&self.domains)
    }

    /// Bytes and blocks of `file:line`, grouped by lineno. Returns zeros if there are none.
    pub fn at_line(&self, file: &str, line: u64) -> (u64, u64) {
        let hits = self.stats.iter().filter(|s| s.most_recent().file() == file && s.most_recent().lineno == line);
        hits.fold((0, 0), |(size, count), s| (size + s.size, count + s.count))
    }

    /// Checks that nothing was lost and nothing contradicted.
    pub fn assert_exact(&self) {
        assert_eq!(self.snapshot.mode, "exact");
        assert!(self.snapshot.unseen.is_empty(), "{:?}", self.snapshot.unseen);
        assert_eq!(self.snapshot.contradictions, 0);
        let lost: Vec<_> = self.snapshot.lost.iter().filter(|(_, n)| **n > 0).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        let native = self.native();
        assert_eq!(native.allocs - native.frees, native.blocks);
    }
}

impl Stats {
    pub fn contradictions(&self) -> u64 {
        self.snapshot.contradictions
    }

    pub fn native(&self) -> &Domain {
        native(&self.domains)
    }
}
