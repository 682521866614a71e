//! The steps of a history, on rungs: fine where recent, coarse where old.
//!
//! | Rung | Width of a step | Age of its steps |
//! | --- | --- | --- |
//! | 0 | as recorded | up to 10 minutes |
//! | 1 | 10 s | up to 2 hours |
//! | 2 | 2 minutes | up to 1 day |
//! | 3 | 20 minutes | beyond |
//!
//! ```text
//!   begin                                                                   now
//!     |  rung 3   |  rung 3   | rung 2 | rung 2 |rung 1|rung 1|0|0|0|0|0|0|0|
//! ```
//!
//! A rung has cells: the multiples of its width. When all steps of a cell are too old for the rung
//! below, they become one step. A pinned time (a mark of the user) ends a cell, so the memory at
//! the mark stays known.
//!
//! Over the bound, the heaviest rung gives way. It passes the older half of its steps on, or
//! doubles the width of its steps. With few steps left, stacks with little memory lose their rows
//! instead: many stacks, each with memory at another time, take many rows however few steps there
//! are. Figures of a few steps are always kept, for any bound.

use heapline_shared_format::snapshot::Domain;
use heapline_shared_format::snapshot::history::{Change, Changes, DomainStep, Held, Step};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet, VecDeque};

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Widths of steps, and greatest ages of steps, in milliseconds.
const LADDER: [(u64, u64); 4] =
    [(1, 10 * MINUTE), (10 * SECOND, 2 * HOUR), (2 * MINUTE, 24 * HOUR), (20 * MINUTE, u64::MAX)];
/// Most steps joined at a time, so that no join takes long.
const MOST_JOINED: usize = 32;
/// Number of steps that are not given up for rows of stacks.
const FEWEST_STEPS: usize = 96;
/// Most pinned times. Older pins are given up.
const MOST_PINS: usize = 32;
/// A stack has rows of its own from this part of its domain on: 1 / `APART`.
pub const APART: u64 = 4096;

/// Steps by age, within a bound.
#[derive(Debug)]
pub struct Rungs {
    /// The rung of the youngest steps comes first. In a rung the oldest step comes first.
    rungs: [Rung; LADDER.len()],
    /// Bound of [`Rungs::bytes`].
    most: usize,
    /// A stack has rows of its own from this part of its domain on: 1 / `apart`.
    apart: u64,
    /// Times that end cells, rising.
    pins: VecDeque<u64>,
}

#[derive(Debug)]
struct Rung {
    /// Width of the cells.
    width: u64,
    /// Greatest age of a step.
    keep: u64,
    steps: VecDeque<Step>,
    bytes: usize,
}

/// A stack in a domain.
pub type StackOf = (Domain, u32);

impl Rungs {
    /// Returns rungs without steps. `most` is the bound in bytes.
    pub fn new(most: usize) -> Rungs {
        let rungs = LADDER.map(|(width, keep)| Rung { width, keep, steps: VecDeque::new(), bytes: 0 });
        Rungs { rungs, most, apart: APART, pins: VecDeque::new() }
    }

    /// The part of a domain from which on a stack has rows of its own.
    pub fn apart(&self) -> u64 {
        self.apart
    }

    /// Least width of a new step, in milliseconds.
    pub fn least_width(&self) -> u64 {
        self.rungs[0].width
    }

    /// Approximate number of bytes taken by the steps.
    pub fn bytes(&self) -> usize {
        self.rungs.iter().map(|rung| rung.bytes).sum()
    }

    /// Number of steps.
    fn count(&self) -> usize {
        self.rungs.iter().map(|rung| rung.steps.len()).sum()
    }

    /// The steps, the oldest first.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.rungs.iter().rev().flat_map(|rung| &rung.steps)
    }

    /// End of the last step.
    pub fn end(&self) -> u64 {
        self.rungs.iter().find_map(|rung| rung.steps.back()).map_or(0, |step| step.end)
    }

    /// Pins a time: the step that ends then is never joined with later steps.
    pub fn pin(&mut self, time: u64) {
        if self.pins.back().is_none_or(|&last| last < time) {
            self.pins.push_back(time);
        }
        if self.pins.len() > MOST_PINS {
            self.pins.pop_front();
        }
    }

    /// Adds a step. A step that ends with the last step, or before, becomes part of it. Returns the
    /// stacks that have lost their rows.
    pub fn push(&mut self, step: Step) -> Vec<StackOf> {
        let last = self.rungs.iter_mut().find(|rung| !rung.steps.is_empty());
        match last {
            Some(rung) if rung.steps.back().is_some_and(|last| last.end >= step.end) => rung.join_last(step),
            _ => self.rungs[0].push(step),
        }
        self.rise();
        self.give_way()
    }

    /// Returns the earliest end of the next step. The first step ends at the begin, and no other
    /// step does. A step at a pinned time stays as it is: the next step ends later.
    pub fn least_end(&self) -> u64 {
        match self.steps().next() {
            None => 0,
            Some(_) if self.pins.back() == Some(&self.end()) => self.end() + 1,
            Some(_) => 1,
        }
    }

    /// Moves steps that are too old for their rung to the next rung: at most a join for each rung.
    /// Returns whether a step has moved.
    fn rise(&mut self) -> bool {
        let now = self.end();
        let mut has_moved = false;
        for below in 0..self.rungs.len() - 1 {
            let (lower, upper) = self.rungs.split_at_mut(below + 1);
            let (lower, upper) = (&mut lower[below], &mut upper[0]);
            let Some(front) = lower.steps.front() else { continue };
            let cell = cell_end(&self.pins, front.end, upper.width);
            if cell.saturating_add(lower.keep) > now {
                continue;
            }
            let joined = lower.take_joined(cell);
            let is_whole = lower.steps.front().is_none_or(|next| next.end > cell);
            match joined {
                Some(step) if !is_whole => lower.put_back(step),
                Some(step) => {
                    let before = upper.steps.back().map(|last| cell_end(&self.pins, last.end, upper.width));
                    if before == Some(cell) { upper.join_last(step) } else { upper.push(step) }
                }
                None => {}
            }
            has_moved = true;
        }
        has_moved
    }

    /// Keeps the bound.
    fn give_way(&mut self) -> Vec<StackOf> {
        let mut folded = Vec::new();
        while self.bytes() > self.most {
            if self.count() > FEWEST_STEPS && self.coarsen() {
                continue;
            }
            if self.apart > 1 {
                self.apart = (self.apart / 4).max(1);
                folded.extend(self.fold());
            } else if !self.coarsen() {
                break;
            }
        }
        folded
    }

    /// Makes the steps of the heaviest rung fewer, or of the next where the heaviest has few.
    /// Returns false if no rung can have fewer.
    fn coarsen(&mut self) -> bool {
        let mut heaviest_first: Vec<usize> = (0..self.rungs.len()).collect();
        heaviest_first.sort_by_key(|&index| Reverse(self.rungs[index].bytes));
        heaviest_first.into_iter().any(|index| self.coarsen_rung(index))
    }

    fn coarsen_rung(&mut self, index: usize) -> bool {
        let upper_width = self.rungs.get(index + 1).map(|rung| rung.width);
        let (now, rung) = (self.end(), &mut self.rungs[index]);
        if upper_width.is_some_and(|width| rung.keep >= 16 * width) {
            rung.keep /= 2;
            while self.rise() {}
            return true;
        }
        let before = rung.steps.len();
        while self.rungs[index].steps.len() == before && self.rungs[index].width < now {
            let width = self.rungs[index].width * 2;
            for rung in &mut self.rungs[index..] {
                rung.width = rung.width.max(width);
            }
            let pins = &self.pins;
            self.rungs[index..].iter_mut().for_each(|rung| rung.regroup(pins));
        }
        self.rungs[index].steps.len() < before
    }

    /// Takes the rows of all stacks that have less than their part of the domain now, and adds them
    /// to the row without a stack. Returns these stacks.
    fn fold(&mut self) -> Vec<StackOf> {
        let mut held: BTreeMap<(Domain, Option<u32>), Held> = BTreeMap::new();
        for change in self.steps().flat_map(|step| step.changes.iter()) {
            held.entry(change.key()).or_default().add(&change);
        }
        let mut whole: BTreeMap<Domain, u64> = BTreeMap::new();
        held.iter().for_each(|(&(domain, _), held)| {
            let sum = whole.entry(domain).or_default();
            *sum = sum.wrapping_add(held.size);
        });
        let is_small = |domain: Domain, held: &Held| !is_large(held.size, whole[&domain], self.apart);
        let small = held.iter().filter_map(|(&(domain, stack), held)| Some((domain, stack?, held)));
        let small: HashSet<StackOf> = small
            .filter(|(domain, _, held)| is_small(*domain, held))
            .map(|(domain, stack, _)| (domain, stack))
            .collect();
        for rung in &mut self.rungs {
            for step in &mut rung.steps {
                step.changes = without(&step.changes, &small);
            }
            rung.bytes = rung.steps.iter().map(bytes_of).sum();
        }
        small.into_iter().collect()
    }
}

/// Whether a part of a domain is large enough for rows of its own.
pub fn is_large(part: u64, whole: u64, apart: u64) -> bool {
    part > whole / apart
}

fn without(changes: &Changes, stacks: &HashSet<StackOf>) -> Changes {
    let is_folded = |change: &Change| change.stack.is_some_and(|stack| stacks.contains(&(change.domain, stack)));
    let mut all: Vec<Change> = changes
        .iter()
        .map(|change| if is_folded(&change) { Change { stack: None, ..change } } else { change })
        .collect();
    all.sort_by_key(Change::key);
    Changes::encode(&summed(all))
}

/// Adds up neighbours with one key.
pub fn summed(mut changes: Vec<Change>) -> Vec<Change> {
    changes.dedup_by(|later, sum| {
        let is_same = later.key() == sum.key();
        if is_same {
            sum.add(later);
        }
        is_same
    });
    changes
}

/// End of the cell with a time.
fn cell_end(pins: &VecDeque<u64>, time: u64, width: u64) -> u64 {
    let end = time.div_ceil(width).saturating_mul(width);
    let pin = pins.get(pins.partition_point(|&pin| pin < time));
    pin.map_or(end, |&pin| end.min(pin))
}

/// Bytes of a step, with its share of the tables.
fn bytes_of(step: &Step) -> usize {
    /// Counters, and what an allocator keeps of a block.
    const HEADS: usize = 64;
    size_of::<Step>() + HEADS + step.domains.capacity() * size_of::<DomainStep>() + step.changes.bytes()
}

impl Rung {
    fn push(&mut self, step: Step) {
        self.bytes += bytes_of(&step);
        self.steps.push_back(step);
    }

    fn put_back(&mut self, step: Step) {
        self.bytes += bytes_of(&step);
        self.steps.push_front(step);
    }

    /// Joins a step with the last step. The end of the last step stays if it is later.
    fn join_last(&mut self, step: Step) {
        let Some(last) = self.steps.pop_back() else { return self.push(step) };
        self.bytes -= bytes_of(&last);
        let end = last.end.max(step.end);
        if let Some(joined) = Step::join(&[last, step]) {
            self.push(Step { end, ..joined });
        }
    }

    /// Removes the first steps up to a time, and returns them as one.
    fn take_joined(&mut self, until: u64) -> Option<Step> {
        let count = self.steps.iter().take(MOST_JOINED).take_while(|step| step.end <= until).count();
        let steps: Vec<Step> = self.steps.drain(..count).collect();
        self.bytes -= steps.iter().map(bytes_of).sum::<usize>();
        Step::join(&steps)
    }

    /// Joins all steps of a cell.
    fn regroup(&mut self, pins: &VecDeque<u64>) {
        let steps: Vec<Step> = std::mem::take(&mut self.steps).into();
        self.bytes = 0;
        let is_one =
            |one: &Step, other: &Step| cell_end(pins, one.end, self.width) == cell_end(pins, other.end, self.width);
        for cell in steps.chunk_by(is_one) {
            if let Some(step) = Step::join(cell) {
                self.bytes += bytes_of(&step);
                self.steps.push_back(step);
            }
        }
    }
}
