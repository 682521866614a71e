//! `aggregator list`: the traced processes of this machine.
//!
//! The control sockets are found and trusted as by `aggregator ctl`. A socket without a listening
//! aggregator is skipped. The aggregators of other users cannot be asked: their processes are
//! counted, where the kernel lists the sockets.

use super::client::{connect_now, encoded, exchange_over, plain_json};
use super::places::{self, Place};
use super::protocol::{DomainStats, Reply, Request, Stats};
use crate::base::sys;
use heapline_shared_format::snapshot::Begun;
use heapline_shared_format::text::{counted, printable, size};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// Limit of the wait for an answer. A stopped aggregator does not answer, and the list goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// Version of the JSON.
const VERSION: u32 = 1;

/// The traced processes of this machine.
#[derive(Debug, Serialize)]
pub struct List {
    heapline_list: u32,
    traces: Vec<Traced>,
    /// Processes of aggregators that do not answer.
    silent: Vec<Silent>,
    /// Processes traced by other users.
    others: Vec<Other>,
}

/// A traced process.
#[derive(Debug, Serialize)]
struct Traced {
    pid: u32,
    /// Process id of the parent, for a followed child.
    parent: Option<u32>,
    command: String,
    since: String,
    begun: Begun,
    mode: String,
    sample_interval: u64,
    domains: Vec<DomainStats>,
    aggregator_pid: u32,
    output: String,
}

/// A process of an aggregator without an answer.
#[derive(Debug, Serialize)]
struct Silent {
    pid: u32,
    aggregator_pid: u32,
}

/// A process traced by another user.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Other {
    uid: u32,
    pid: u32,
}

impl Traced {
    fn new(stats: Stats, aggregator_pid: u32) -> Traced {
        let Stats { snapshot, domains, .. } = stats;
        Traced {
            pid: snapshot.pid,
            parent: snapshot.trace.parent,
            command: snapshot.command,
            since: snapshot.trace.since,
            begun: snapshot.trace.begun,
            mode: snapshot.mode,
            sample_interval: snapshot.sample_interval,
            domains,
            aggregator_pid,
            output: snapshot.trace.output,
        }
    }
}

/// Returns the traced processes of this machine, as text or as JSON.
pub fn list(json: bool) -> Result<String, super::ControlError> {
    let list = List::ask();
    if json { encoded(&list).map(|json| plain_json(&json)) } else { Ok(list.text()) }
}

impl List {
    /// Finds the control sockets, and asks each aggregator for each of its processes.
    fn ask() -> List {
        let mut list = List { heapline_list: VERSION, traces: Vec::new(), silent: Vec::new(), others: Vec::new() };
        let pids: BTreeSet<u32> = places::all().map(|(pid, _)| pid).collect();
        let mut unheard = BTreeSet::new();
        for pid in pids {
            let Ok((stream, _)) = connect_now(pid) else {
                unheard.insert(pid);
                continue;
            };
            let aggregator_pid = sys::peer(&stream).map_or(0, |(aggregator, _)| aggregator);
            if list.silent.iter().any(|silent| silent.aggregator_pid == aggregator_pid) {
                list.silent.push(Silent { pid, aggregator_pid });
                continue;
            }
            match exchange_over(stream, &Request::Stats, Some(PATIENCE)) {
                Ok(Reply::Stats(stats)) => list.traces.push(Traced::new(*stats, aggregator_pid)),
                Ok(_) => drop(unheard.insert(pid)),
                // The process may have ended just now, with the aggregator.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {}
                Err(_) => list.silent.push(Silent { pid, aggregator_pid }),
            }
        }
        let own = sys::geteuid();
        let others = places::listed().filter(|(pid, _)| unheard.contains(pid)).filter_map(|(pid, place)| {
            let uid = owner(&place)?;
            (uid != own).then_some(Other { uid, pid })
        });
        list.others = others.collect::<BTreeSet<_>>().into_iter().collect();
        list.traces = in_order(std::mem::take(&mut list.traces));
        list
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        if !self.traces.is_empty() {
            let rows = std::iter::once(HEAD.map(str::to_owned).to_vec()).chain(rows(&self.traces));
            lines.extend(aligned(&rows.collect::<Vec<_>>()));
        } else if self.silent.is_empty() && self.others.is_empty() {
            lines.push("nothing is traced on this machine".to_owned());
        }
        let mut silent = BTreeMap::<u32, Vec<String>>::new();
        self.silent.iter().for_each(|one| silent.entry(one.aggregator_pid).or_default().push(one.pid.to_string()));
        lines.extend(silent.into_iter().map(|(aggregator, pids)| {
            format!("aggregator {aggregator} does not answer (is it stopped?); it traces {}", pids.join(", "))
        }));
        let mut others = BTreeMap::<u32, Vec<String>>::new();
        self.others.iter().for_each(|other| others.entry(other.uid).or_default().push(other.pid.to_string()));
        lines.extend(others.into_iter().map(|(uid, pids)| {
            let processes = counted(pids.len() as u64, "process");
            format!("user {uid} traces {processes} ({}): ask as that user or as root", pids.join(", "))
        }));
        lines.join("\n")
    }
}

/// Returns the user that owns the folder of a socket. An abstract name has no owner.
fn owner(place: &Place) -> Option<u32> {
    match place {
        Place::File(path) => Some(fs::symlink_metadata(path.parent()?).ok()?.uid()),
        Place::Name(_) => None,
    }
}

/// Sorts the processes by aggregator, each child behind its parent.
fn in_order(mut traces: Vec<Traced>) -> Vec<Traced> {
    traces.sort_by_key(|traced| (traced.aggregator_pid, traced.pid));
    let mut ordered: Vec<Traced> = Vec::with_capacity(traces.len());
    while !traces.is_empty() {
        let is_known = |parent: Option<u32>, of: &Traced| {
            traces.iter().any(|other| Some(other.pid) == parent && other.aggregator_pid == of.aggregator_pid)
        };
        // A process whose parent has ended begins a group. Reused process ids may make a circle.
        let first = traces.iter().position(|traced| !is_known(traced.parent, traced)).unwrap_or(0);
        let mut group = vec![traces.remove(first)];
        while let Some(next) = group.pop() {
            let is_child =
                |traced: &mut Traced| traced.parent == Some(next.pid) && traced.aggregator_pid == next.aggregator_pid;
            let mut children: Vec<Traced> = traces.extract_if(.., is_child).collect();
            children.reverse();
            group.append(&mut children);
            ordered.push(next);
        }
    }
    ordered
}

const HEAD: [&str; 9] = ["PID", "PROGRAM", "SINCE", "MODE", "LAYER", "CURRENT", "PEAK", "AGGREGATOR", "SNAPSHOT"];

/// Columns with numbers, aligned to the right.
const RIGHT: [usize; 2] = [5, 6];

/// Longest command shown, in characters.
const MOST_COMMAND: usize = 40;

/// Returns the cells of the table: a row for each process and layer.
fn rows(traces: &[Traced]) -> impl Iterator<Item = Vec<String>> + '_ {
    let mut depths = BTreeMap::<(u32, u32), usize>::new();
    traces.iter().flat_map(move |traced| {
        let key = |pid| (traced.aggregator_pid, pid);
        let depth = traced.parent.and_then(|parent| depths.get(&key(parent))).map_or(0, |depth| depth + 1);
        depths.insert(key(traced.pid), depth);
        let mut rows: Vec<Vec<String>> = traced.domains.iter().map(|domain| layer(traced, domain)).collect();
        let about = [
            format!("{}{}", "  ".repeat(depth), traced.pid),
            shortened(&printable(&traced.command)),
            printable(&traced.since).into_owned(),
            mode(traced),
        ];
        if rows.is_empty() {
            rows.push(vec![String::new(); HEAD.len()]);
        }
        rows[0].iter_mut().zip(about).for_each(|(cell, text)| *cell = text);
        rows[0][7] = traced.aggregator_pid.to_string();
        rows[0][8] = printable(&traced.output).into_owned();
        rows
    })
}

fn layer(traced: &Traced, domain: &DomainStats) -> Vec<String> {
    let is_estimate = traced.sample_interval != 0 && ["native", "python"].contains(&&*domain.domain);
    let about = if is_estimate { "~" } else { "" };
    let mut cells = vec![String::new(); HEAD.len()];
    cells[4] = printable(&domain.domain).into_owned();
    cells[5] = format!("{about}{}", size(domain.current));
    cells[6] = format!("{about}{}", size(domain.peak));
    cells
}

fn mode(traced: &Traced) -> String {
    let mode = printable(&traced.mode);
    let begun = match traced.begun {
        Begun::Start => "",
        Begun::Attach => ", attached",
        Begun::Fork => ", forked",
    };
    match traced.sample_interval {
        0 => format!("{mode}{begun}"),
        interval => format!("{mode} 1 in {}{begun}", size(interval)),
    }
}

fn shortened(command: &str) -> String {
    if command.chars().count() <= MOST_COMMAND {
        return command.to_owned();
    }
    command.chars().take(MOST_COMMAND - 3).chain("...".chars()).collect()
}

/// Returns the lines of a table with columns of equal width.
fn aligned(rows: &[Vec<String>]) -> impl Iterator<Item = String> + '_ {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    rows.iter().map(move |row| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if RIGHT.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(pid: u32, parent: Option<u32>, aggregator_pid: u32) -> Traced {
        let domain = |domain: &str, current, peak| DomainStats {
            domain: domain.to_owned(),
            current,
            peak,
            blocks: 1,
            allocs: 1,
            frees: 0,
            allocated_bytes: 0,
        };
        Traced {
            pid,
            parent,
            command: "/usr/bin/server --port 1\n".to_owned(),
            since: "2026-11-28T22:58:35.737Z".to_owned(),
            begun: if parent.is_some() { Begun::Fork } else { Begun::Start },
            mode: "exact".to_owned(),
            sample_interval: 0,
            domains: vec![domain("native", 100, 2 << 20)],
            aggregator_pid,
            output: "/work/s.snap.zst".to_owned(),
        }
    }

    fn list(traces: Vec<Traced>) -> List {
        List { heapline_list: VERSION, traces: in_order(traces), silent: Vec::new(), others: Vec::new() }
    }

    #[test]
    fn an_empty_list_says_so() {
        assert_eq!(list(Vec::new()).text(), "nothing is traced on this machine");
        let json = encoded(&list(Vec::new())).expect("JSON");
        assert_eq!(json, r#"{"heapline_list":1,"traces":[],"silent":[],"others":[]}"#);
    }

    #[test]
    fn children_stand_below_their_parents_in_aligned_columns() {
        let mut sampled = traced(7, None, 60);
        (sampled.sample_interval, sampled.mode, sampled.begun) = (512 << 10, "sampled".to_owned(), Begun::Attach);
        sampled.command = "x".repeat(50);
        sampled.domains.push(DomainStats { domain: "mmap".to_owned(), ..sampled.domains[0].clone() });
        let pids = [(30, Some(20)), (9, Some(8)), (8, Some(5)), (20, Some(8))];
        let mut traces: Vec<Traced> = pids.map(|(pid, parent)| traced(pid, parent, 50)).into();
        traces.push(sampled);
        let mut list = list(traces);
        list.others = vec![Other { uid: 1000, pid: 3 }, Other { uid: 1000, pid: 4 }];
        list.silent = vec![Silent { pid: 2, aggregator_pid: 70 }];
        let text = list.text();
        let lines: Vec<&str> = text.lines().collect();
        let words = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>().join(" ");
        let child = "2026-11-28T22:58:35.737Z exact, forked native 100 B 2048 KiB 50 /work/s.snap.zst";
        assert_eq!(words(0), HEAD.join(" "));
        for (line, pid) in [(1, 8), (2, 9), (3, 20), (4, 30)] {
            assert_eq!(words(line), format!(r"{pid} /usr/bin/server --port 1\n {child}"));
        }
        let program = format!("{}...", "x".repeat(37));
        let sampled =
            "2026-11-28T22:58:35.737Z sampled 1 in 512 KiB, attached native ~100 B ~2048 KiB 60 /work/s.snap.zst";
        assert_eq!(words(5), format!("7 {program} {sampled}"));
        assert_eq!(words(6), "mmap 100 B 2048 KiB");
        assert_eq!(lines[7], "aggregator 70 does not answer (is it stopped?); it traces 2");
        assert_eq!(lines[8], "user 1000 traces 2 processes (3, 4): ask as that user or as root");

        let indent = |line: &str| line.len() - line.trim_start().len();
        assert_eq!(lines[1..6].iter().map(|line| indent(line)).collect::<Vec<_>>(), [0, 2, 2, 4, 0]);
        let columns = |of: &str| lines[..7].iter().filter_map(|line| line.find(of)).collect::<BTreeSet<_>>();
        assert_eq!([columns("native").len(), columns("/work").len(), columns("2026").len()], [1; 3], "{text}");
        let ends =
            |of: &str| lines[1..7].iter().map(|line| line.find(of).map(|at| at + of.len())).collect::<BTreeSet<_>>();
        assert_eq!([ends(" 100 B").len(), ends("2048 KiB").len()], [2, 1], "numbers end in one column\n{text}");
    }
}
