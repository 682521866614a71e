//! The memory of all processes, as columns: a row for each process, domain and traceback.
//!
//! A row has the sums of the peak and of the whole time. Live blocks are rows of their own, by
//! thread and size of a block, below the row of their traceback. Blocks of samples of one size and
//! distance have a weight: what a sample stands for.

use super::calls::Used;
use super::column::Columns;
use crate::frames::{TracebackId, Tracebacks};
use crate::input::copies::Part;
use crate::input::moment::At;
use heapline_shared_format::snapshot::{Domain, Sampled, weight};
use std::collections::{BTreeSet, HashMap};

/// Process, domain, traceback, and weight of the samples.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    process: u32,
    domain: Domain,
    traceback: TracebackId,
    weight: u32,
}

/// Sums of a row.
#[derive(Clone, Copy, Default)]
struct Sums {
    peak_size: u64,
    peak_count: u64,
    total_size: u64,
    total_count: u64,
    /// Copies of samples in other processes, beyond the samples themselves.
    live_copies: u64,
    peak_copies: u64,
}

/// Live blocks of a row, of one thread and size.
struct Live {
    row: u32,
    thread: u32,
    /// Bytes that each block counts.
    each: u64,
    count: u64,
}

/// Row of each stack of a process, and of all stacks without rows of their own. Stacks that the
/// filters drop are missing.
pub type RowOfStack = HashMap<(Domain, Option<u32>), u32>;

/// Rows of all processes.
#[derive(Default)]
pub struct Rows {
    keys: Vec<Key>,
    blamed: Vec<TracebackId>,
    sums: Vec<Sums>,
    numbers: HashMap<Key, u32>,
    live: Vec<Live>,
    weights: Vec<Sampled>,
    weight_numbers: HashMap<(u64, u64), u32>,
}

impl Rows {
    /// Returns the row of the blocks of a traceback, blamed on the most recent frame of `blamed`.
    pub fn row(
        &mut self,
        (process, domain): (u32, Domain),
        (traceback, blamed): (TracebackId, TracebackId),
        of_samples: Option<Sampled>,
    ) -> u32 {
        let weight = of_samples.map_or(0, |sampled| {
            let next = number(self.weights.len()) + 1;
            *self.weight_numbers.entry((sampled.interval, sampled.size)).or_insert_with(|| {
                self.weights.push(sampled);
                next
            })
        });
        let key = Key { process, domain, traceback, weight };
        *self.numbers.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.blamed.push(blamed);
            self.sums.push(Sums::default());
            number(self.keys.len() - 1)
        })
    }

    /// Adds the blocks of a process. `first_thread` is the number of the process's first thread
    /// among the threads of all processes.
    pub fn add(&mut self, part: Part<'_>, rows: &RowOfStack, first_thread: u32) {
        let Part { snapshot, copies } = part;
        let row_of = |domain, stack| rows.get(&(domain, Some(stack))).copied();
        for (index, live) in snapshot.live.iter().enumerate() {
            let Some(row) = row_of(live.domain, live.stack) else { continue };
            let more = copies.of_live(index, live.count).saturating_sub(live.count);
            let sums = &mut self.sums[row as usize];
            sums.live_copies = sums.live_copies.saturating_add(more);
            let thread = first_thread.saturating_add(live.thread);
            self.live.push(Live { row, thread, each: live.size, count: live.count });
        }
        for total in &snapshot.totals {
            let Some(row) = row_of(total.domain, total.stack) else { continue };
            let copies = copies.of_stack(At::Peak, total.domain, total.stack, total.peak_count);
            let sums = &mut self.sums[row as usize];
            for (sum, more) in [
                (&mut sums.peak_size, total.peak_size),
                (&mut sums.peak_count, total.peak_count),
                (&mut sums.total_size, total.total_size),
                (&mut sums.total_count, total.total_count),
                (&mut sums.peak_copies, copies.saturating_sub(total.peak_count)),
            ] {
                *sum = sum.saturating_add(more);
            }
        }
    }

    /// Returns the tracebacks of all rows.
    pub fn used(&self) -> Used {
        let mut used = Used::default();
        self.keys.iter().zip(&self.blamed).for_each(|(key, &blamed)| used.add(key.traceback, blamed));
        used
    }

    /// Returns the domains of all rows.
    pub fn domains(&self) -> BTreeSet<Domain> {
        self.keys.iter().map(|key| key.domain).collect()
    }

    /// Writes the rows in the order of processes, domains and nodes. Returns the place of each row
    /// in this order.
    pub fn write(
        &mut self,
        columns: &mut Columns,
        tracebacks: &Tracebacks,
        node_of: &[u32],
        domain_number: &dyn Fn(Domain) -> u64,
    ) -> Vec<u32> {
        let node = |id| node_of[Tracebacks::traceback_index(id)];
        let mut order: Vec<usize> = (0..self.keys.len()).collect();
        order.sort_unstable_by_key(|&row| {
            let key = &self.keys[row];
            (key.process, domain_number(key.domain), node(key.traceback), key.weight)
        });
        let keys = || order.iter().map(|&row| &self.keys[row]);
        columns.steps("row.process", keys().map(|key| key.process.into()));
        columns.steps("row.domain", keys().map(|key| domain_number(key.domain)));
        columns.steps("row.node", keys().map(|key| node(key.traceback).into()));
        columns.plain("row.weight", keys().map(|key| key.weight.into()));
        // Frames between the most recent frame and the blamed frame.
        let above = |&row: &usize| {
            let blamed = self.blamed[row];
            let callers = std::iter::successors(Some(self.keys[row].traceback), |&id| tracebacks.older(id));
            callers.take_while(|&id| id != blamed).count() as u64
        };
        columns.plain("row.above", order.iter().map(above));
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &row)| places[row] = number(place));

        // Most stacks have blocks of one size, so a mean tells the sums: from the number of blocks,
        // the difference from the mean of the live blocks, and a rest, which are mostly 0.
        let mut live = vec![(0_u64, 0_u64); order.len()];
        for one in &self.live {
            let (size, count) = &mut live[places[one.row as usize] as usize];
            (*size, *count) =
                (size.saturating_add(one.each.saturating_mul(one.count)), count.saturating_add(one.count));
        }
        let sums = |of: fn(&Sums) -> (u64, u64)| order.iter().map(|&row| of(&self.sums[row])).collect::<Vec<_>>();
        let total = sums(|sums| (sums.total_size, sums.total_count));
        let peak = sums(|sums| (sums.peak_size, sums.peak_count));
        add_sums(columns, ["row.total_count", "row.total_each", "row.total_rest"], &total, &live);
        add_sums(columns, ["row.peak_count", "row.peak_each", "row.peak_rest"], &peak, &total);
        columns.plain("row.live_copies", order.iter().map(|&row| self.sums[row].live_copies));
        columns.plain("row.peak_copies", order.iter().map(|&row| self.sums[row].peak_copies));

        self.live.iter_mut().for_each(|live| live.row = places[live.row as usize]);
        self.live.sort_unstable_by_key(|live| (live.row, live.thread, live.each));
        columns.steps("live.row", self.live.iter().map(|live| live.row.into()));
        columns.steps("live.thread", self.live.iter().map(|live| live.thread.into()));
        columns.plain("live.each", self.live.iter().map(|live| live.each));
        columns.plain("live.count", self.live.iter().map(|live| live.count));

        columns.plain("weight.interval", self.weights.iter().map(|one| one.interval));
        columns.plain("weight.size", self.weights.iter().map(|one| one.size));
        columns.plain("weight.bytes", self.weights.iter().map(|one| weight::bytes(one.size, one.interval)));
        columns.reals("weight.blocks", self.weights.iter().map(|one| weight::blocks(one.size, one.interval)));
        columns.reals("weight.doubt", self.weights.iter().map(|one| weight::doubt(one.size, one.interval)));
        places
    }
}

/// Mean size of a block, rounded down.
fn mean((size, count): (u64, u64)) -> u64 {
    size / count.max(1)
}

/// Adds bytes and blocks of each row as three columns: blocks, mean less the mean of `like`, rest.
fn add_sums(columns: &mut Columns, names: [&'static str; 3], sums: &[(u64, u64)], like: &[(u64, u64)]) {
    let [counts, means, rests] = names;
    columns.plain(counts, sums.iter().map(|sum| sum.1));
    columns.signed(means, sums.iter().zip(like).map(|(&sum, &like)| mean(sum).wrapping_sub(mean(like)).cast_signed()));
    columns.plain(rests, sums.iter().map(|&(size, count)| size - mean((size, count)) * count));
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 rows")
}
