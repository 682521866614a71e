//! Subject of a report: a process, or a tree of processes with their snapshots in a folder.
//!
//! The figures of a tree are sums over its processes, each at its own end (or peak). Memory
//! inherited by fork counts in the parent and in the child, since both processes have it.

use crate::input::copies::{Copies, Part};
use crate::input::load::{LoadError, load};
use crate::input::moment::totals;
use heapline_shared_format::snapshot::{Domain, DomainTotals, Meta, Snapshot};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Subject of a report: a process, or a tree of at least one process.
#[derive(Debug)]
pub struct Subject {
    /// Snapshots in the order of [`Subject::processes`].
    parts: Vec<Snapshot>,
    /// For each part: the number of its samples' copies in all parts.
    copies: Vec<Copies>,
    /// Summed figures of a tree, without tables; none for a single process.
    sum: Option<Box<Snapshot>>,
    depths: Vec<usize>,
}

/// A process of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Process<'s> {
    /// Snapshot of the process.
    pub snapshot: &'s Snapshot,
    /// Number of generations below the first process.
    pub depth: usize,
}

/// Reason why a tree could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A snapshot could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The folder could not be read.
    #[error("cannot read {}: {error}; give the folder of a process tree's snapshots", path.display())]
    Folder {
        /// Path of the folder.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// The folder has no snapshot.
    #[error("there is no *.snap.zst in {}: give the folder of a process tree's snapshots", path.display())]
    Nothing {
        /// Path of the folder.
        path: PathBuf,
    },
}

const SUFFIX: &str = ".snap.zst";

impl Subject {
    /// Makes a subject of a single process.
    pub fn process(snapshot: Snapshot) -> Subject {
        Subject { parts: vec![snapshot], copies: vec![Copies::default()], sum: None, depths: vec![0] }
    }

    /// Loads the snapshots in a folder and the first process's snapshot. The first snapshot may lie
    /// beside the folder, under the folder's name. `path` may be the folder or the first snapshot.
    ///
    /// # Errors
    ///
    /// Fails with a [`TreeError`].
    pub fn load_tree(path: &Path) -> Result<Subject, TreeError> {
        let files = files(path)?;
        if files.is_empty() {
            return Err(TreeError::Nothing { path: path.to_path_buf() });
        }
        let snapshots = files.iter().map(|file| load(file)).collect::<Result<Vec<_>, _>>()?;
        Ok(Subject::tree(snapshots))
    }

    /// Makes a tree of processes. `snapshots` must not be empty.
    pub fn tree(snapshots: Vec<Snapshot>) -> Subject {
        let (parts, depths) = in_order(snapshots);
        let sum = Some(Box::new(sum(&parts)));
        let copies = Copies::among(&parts);
        Subject { parts, copies, sum, depths }
    }

    /// Figures of the process, or the sums of a tree.
    pub fn head(&self) -> &Snapshot {
        self.sum.as_deref().unwrap_or(&self.parts[0])
    }

    /// Snapshot of the first process.
    pub fn first(&self) -> &Snapshot {
        &self.parts[0]
    }

    /// Snapshots of all processes.
    pub fn parts(&self) -> &[Snapshot] {
        &self.parts
    }

    /// Snapshots of all processes, as parts of a sum.
    pub fn summed(&self) -> impl Iterator<Item = Part<'_>> + Clone {
        self.parts.iter().zip(&self.copies).map(|(snapshot, copies)| Part { snapshot, copies })
    }

    /// Whether some figures are estimates.
    pub fn is_sampled(&self) -> bool {
        self.parts.iter().any(|part| part.meta.sample_interval != 0 || !part.sampled.is_empty())
    }

    /// Whether the subject is a tree of processes.
    pub fn is_tree(&self) -> bool {
        self.processes().next().is_some()
    }

    /// Processes of a tree, each behind its parent; none if the subject is a single process.
    pub fn processes(&self) -> impl Iterator<Item = Process<'_>> {
        let parts = if self.sum.is_some() { &self.parts[..] } else { &[] };
        parts.iter().zip(&self.depths).map(|(snapshot, &depth)| Process { snapshot, depth })
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, TreeError> {
    let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
    let name = path.as_os_str().to_string_lossy().trim_end_matches('/').to_string();
    let (folder, beside) = if is_file {
        let stem = name.strip_suffix(SUFFIX).or_else(|| name.strip_suffix(".zst"));
        (PathBuf::from(stem.map_or_else(|| format!("{name}.tree"), str::to_string)), vec![path.to_path_buf()])
    } else {
        let of_file = name.strip_suffix(".tree").map(str::to_string);
        let named = [format!("{name}{SUFFIX}"), format!("{name}.zst")].into_iter().chain(of_file);
        let beside = named.map(PathBuf::from).find(|file| file.is_file());
        (path.to_path_buf(), beside.into_iter().collect())
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        // The process has no children.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !beside.is_empty() => return Ok(beside),
        Err(error) => return Err(TreeError::Folder { path: folder, error }),
    };
    let mut files = beside;
    for entry in entries {
        let entry = entry.map_err(|error| TreeError::Folder { path: folder.clone(), error })?;
        if entry.file_name().to_string_lossy().ends_with(SUFFIX) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Sorts the processes: each behind its parent, siblings by process id. Returns also the depth of
/// each process. A process without a known parent has depth 0.
fn in_order(snapshots: Vec<Snapshot>) -> (Vec<Snapshot>, Vec<usize>) {
    let mut by_pid: Vec<usize> = (0..snapshots.len()).collect();
    by_pid.sort_by_key(|&index| (snapshots[index].meta.pid, index));
    let known: HashMap<u32, usize> = by_pid.iter().rev().map(|&index| (snapshots[index].meta.pid, index)).collect();
    let parent = |index: usize| {
        let origin = snapshots[index].origin.as_ref()?;
        known.get(&origin.parent).copied().filter(|&parent| parent != index)
    };
    let mut children: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut waiting: Vec<(usize, usize)> = Vec::new();
    for &index in by_pid.iter().rev() {
        match parent(index) {
            Some(parent) => children.entry(parent).or_default().push(index),
            None => waiting.push((index, 0)),
        }
    }
    // The process without an origin comes first: no traced process started it.
    waiting.sort_by_key(|&(index, _)| snapshots[index].origin.is_none());
    let mut order = Vec::with_capacity(snapshots.len());
    let mut placed = vec![false; snapshots.len()];
    let mut left = by_pid.iter();
    loop {
        while let Some((index, depth)) = waiting.pop() {
            if !std::mem::replace(&mut placed[index], true) {
                order.push((index, depth));
                waiting.extend(children.get(&index).into_iter().flatten().map(|&child| (child, depth + 1)));
            }
        }
        // Reused process ids may name each other as parents in a circle.
        match left.find(|&&index| !placed[index]) {
            Some(&index) => waiting.push((index, 0)),
            None => break,
        }
    }
    let mut snapshots: Vec<Option<Snapshot>> = snapshots.into_iter().map(Some).collect();
    order.into_iter().filter_map(|(index, depth)| Some((snapshots[index].take()?, depth))).unzip()
}

fn sum(parts: &[Snapshot]) -> Snapshot {
    let mut domains: BTreeMap<Domain, DomainTotals> = BTreeMap::new();
    for row in parts.iter().flat_map(|part| &part.domains) {
        let nothing = totals(&parts[0], row.domain);
        let sum = domains.entry(row.domain).or_insert(DomainTotals {
            current: 0,
            peak: 0,
            blocks: 0,
            allocs: 0,
            frees: 0,
            allocated_bytes: 0,
            ..nothing
        });
        sum.current = sum.current.saturating_add(row.current);
        sum.peak = sum.peak.saturating_add(row.peak);
        sum.blocks = sum.blocks.saturating_add(row.blocks);
        sum.allocs = sum.allocs.saturating_add(row.allocs);
        sum.frees = sum.frees.saturating_add(row.frees);
        sum.allocated_bytes = sum.allocated_bytes.saturating_add(row.allocated_bytes);
    }
    let mut meta = parts[0].meta.clone();
    for part in &parts[1..] {
        add(&mut meta, &part.meta);
    }
    meta.notes = notes(parts);
    let native_first = |row: &DomainTotals| (row.domain != Domain::Native, row.domain);
    let mut domains: Vec<DomainTotals> = domains.into_values().collect();
    domains.sort_by_key(native_first);
    Snapshot { meta, domains, ..Snapshot::default() }
}

fn add(sum: &mut Meta, other: &Meta) {
    for (counts, others) in [(&mut sum.lost, &other.lost), (&mut sum.contradictions, &other.contradictions)] {
        for (name, count) in others {
            let sum: &mut u64 = counts.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
    for (sum, other) in [
        (&mut sum.untracked_frees, other.untracked_frees),
        (&mut sum.in_realloc, other.in_realloc),
        (&mut sum.target_bytes, other.target_bytes),
    ] {
        *sum = sum.saturating_add(other);
    }
    // All processes share an aggregator.
    sum.aggregator_bytes = sum.aggregator_bytes.max(other.aggregator_bytes);
    // A cause common to several processes is listed once.
    let new = other.unseen.iter().filter(|cause| !sum.unseen.contains(cause)).cloned().collect::<Vec<_>>();
    sum.unseen.extend(new);
}

/// Lists the notes of all processes. A note common to several processes is listed once.
fn notes(parts: &[Snapshot]) -> Vec<String> {
    /// Most processes named in front of a note.
    const NAMED: usize = 3;
    let mut pids: HashMap<&str, Vec<u32>> = HashMap::new();
    let mut order = Vec::new();
    for (meta, note) in parts.iter().flat_map(|part| part.meta.notes.iter().map(|note| (&part.meta, note))) {
        let of_note = pids.entry(note).or_default();
        if of_note.is_empty() {
            order.push(note.as_str());
        }
        of_note.push(meta.pid);
    }
    let listed = |note: &str| {
        let pids = pids.get(note).map_or(&[][..], Vec::as_slice);
        let named: Vec<String> = pids.iter().take(NAMED).map(u32::to_string).collect();
        match (&named[..], pids.len().saturating_sub(NAMED)) {
            ([pid], _) => format!("process {pid}: {note}"),
            (_, 0) => format!("processes {}: {note}", named.join(", ")),
            (_, more) => format!("processes {} and {more} more: {note}", named.join(", ")),
        }
    };
    order.into_iter().map(listed).collect()
}
