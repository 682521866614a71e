//! Samples present in several processes of a tree, since a fork has copied them.
//!
//! All copies of a sample are one draw. If the sum over a tree has a sample m times, then the
//! sample's weight is m times as large, and the variance m^2 times. A part of the sum with a copy
//! gets m times its own variance, so variances still add up.

use crate::input::moment::At;
use heapline_shared_format::snapshot::{Domain, Draws, Snapshot};
use std::collections::HashMap;

/// Number of copies of a process's samples in all processes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// By row of the live blocks: the copies of the row's samples, summed.
    live: HashMap<usize, u64>,
    /// By domain and stack: the copies of the samples live at the peak.
    peak: HashMap<(Domain, u32), u64>,
}

/// A process as a part of a sum.
#[derive(Clone, Copy, Debug)]
pub struct Part<'s> {
    /// Snapshot of the process.
    pub snapshot: &'s Snapshot,
    /// Copies of the process's samples in all parts of the sum.
    pub copies: &'s Copies,
}

impl<'s> Part<'s> {
    /// Makes a part of a single process: no sample has copies.
    pub fn alone(snapshot: &'s Snapshot) -> Part<'s> {
        static NONE: std::sync::LazyLock<Copies> = std::sync::LazyLock::new(Copies::default);
        Part { snapshot, copies: &NONE }
    }
}

/// A sample: number of the drawing process, domain, stack and address.
type Sample = (u64, Domain, u32, u64);

impl Copies {
    /// Copies of the samples in row `row` of the live blocks, a row with `count` samples.
    pub fn of_live(&self, row: usize, count: u64) -> u64 {
        self.live.get(&row).copied().unwrap_or(count)
    }

    /// Copies of `count` samples of a stack at a moment. Allocations since the start were drawn by
    /// the process itself.
    pub fn of_stack(&self, at: At, domain: Domain, stack: u32, count: u64) -> u64 {
        match at {
            At::Peak | At::Instant(_) => self.peak.get(&(domain, stack)).copied().unwrap_or(count),
            At::Live | At::Total => count,
        }
    }

    /// Counts the copies for each process of a tree.
    pub fn among(parts: &[Snapshot]) -> Vec<Copies> {
        let live = live(parts);
        let peak = peak(parts);
        live.into_iter().zip(peak).map(|(live, peak)| Copies { live, peak }).collect()
    }
}

fn live(parts: &[Snapshot]) -> Vec<HashMap<usize, u64>> {
    let mut known: HashMap<Sample, u64> = HashMap::new();
    parts.iter().flat_map(samples).for_each(|(_, sample)| *known.entry(sample).or_default() += 1);
    let copies = |part: &Snapshot| {
        let mut rows: HashMap<usize, (u64, u64)> = HashMap::new();
        for (row, sample) in samples(part) {
            let (samples, copies) = rows.entry(row).or_default();
            *samples += 1;
            *copies += known[&sample];
        }
        // Samples of the row without an address have no copies.
        let all = |(row, (samples, copies)): (usize, (u64, u64))| {
            (row, copies + part.live[row].count.saturating_sub(samples))
        };
        rows.into_iter().map(all).collect()
    };
    parts.iter().map(copies).collect()
}

/// Samples of a process that other processes may have too, with their rows of live blocks.
fn samples(part: &Snapshot) -> impl Iterator<Item = (usize, Sample)> + '_ {
    part.draws.iter().flat_map(move |draws| {
        draws.shared.iter().map(move |shared| {
            let row = &part.live[shared.live as usize];
            (shared.live as usize, (draws.drawn_by(row.stack), row.domain, row.stack, shared.address))
        })
    })
}

/// Counts the copies of samples at the peak, for which only numbers are known. Two processes are
/// assumed to share as many samples as possible, so intervals are too wide rather than too narrow.
fn peak(parts: &[Snapshot]) -> Vec<HashMap<(Domain, u32), u64>> {
    let mut counts: HashMap<(u64, Domain, u32), Vec<(u64, usize)>> = HashMap::new();
    for (index, part) in parts.iter().enumerate() {
        for (draws, row) in part.draws.iter().flat_map(|draws| part.totals.iter().map(move |row| (draws, row))) {
            if row.domain.is_sampled() && row.stack < draws.shared_end && row.peak_count > 0 {
                let sample = (draws.drawn_by(row.stack), row.domain, row.stack);
                counts.entry(sample).or_default().push((row.peak_count, index));
            }
        }
    }
    let mut copies = vec![HashMap::new(); parts.len()];
    for ((_, domain, stack), mut counts) in counts {
        counts.sort_unstable();
        let mut smaller = 0_u64;
        let all = counts.len() as u64;
        for (rank, (count, part)) in (0..).zip(counts) {
            let shared = smaller.saturating_add(count.saturating_mul(all - rank));
            copies[part].insert((domain, stack), shared);
            smaller = smaller.saturating_add(count);
        }
    }
    copies
}

/// A process with samples inherited by other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forebear<'s> {
    /// Number of the process as a drawer of samples ([`Draws::by`]).
    pub by: u64,
    /// Number of processes that may have this process's samples, itself included.
    pub heirs: u64,
    /// Snapshot of the process, if present.
    pub snapshot: Option<&'s Snapshot>,
}

/// Finds the processes with memory possibly inherited by several processes.
pub fn forebears<'s>(parts: impl IntoIterator<Item = &'s Snapshot>) -> Vec<Forebear<'s>> {
    let mut known: HashMap<u64, Forebear<'s>> = HashMap::new();
    for (snapshot, draws) in parts.into_iter().filter_map(|part| Some((part, part.draws.as_ref()?))) {
        for by in draws.lineage() {
            known.entry(by).or_insert(Forebear { by, heirs: 0, snapshot: None }).heirs += 1;
        }
        known.entry(draws.by).and_modify(|own| own.snapshot = Some(snapshot));
    }
    known.into_values().filter(|forebear| forebear.heirs > 1).collect()
}

/// For each drawing process: the number of processes with its most widespread sample.
pub fn widest(part: Part<'_>, domain: Domain, at: At) -> HashMap<u64, u64> {
    let mut widest: HashMap<u64, u64> = HashMap::new();
    let Some(draws) = &part.snapshot.draws else { return widest };
    let mut met = |draws: &Draws, stack, count: u64, copies: u64| {
        if stack < draws.shared_end && count > 0 {
            let most = widest.entry(draws.drawn_by(stack)).or_default();
            *most = (*most).max(copies / count);
        }
    };
    match at {
        At::Live => {
            let rows = part.snapshot.live.iter().enumerate().filter(|(_, row)| row.domain == domain);
            rows.for_each(|(index, row)| met(draws, row.stack, row.count, part.copies.of_live(index, row.count)));
        }
        At::Peak | At::Instant(_) => {
            let rows = part.snapshot.totals.iter().filter(|row| row.domain == domain);
            rows.for_each(|row| {
                met(draws, row.stack, row.peak_count, part.copies.of_stack(at, domain, row.stack, row.peak_count))
            });
        }
        At::Total => {}
    }
    widest
}
