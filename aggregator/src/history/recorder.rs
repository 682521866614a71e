//! Ends steps, and takes from the table what has changed in them.
//!
//! A stack has rows of its own from the step on in which it first changed and had, or allocated,
//! more than a small part of its domain. Its first row has all of its memory. All other stacks are
//! in the row without a stack, which is the domain's change less the other rows. So the sum over
//! all rows is right by construction.

use super::gauges::Gauges;
use super::marks::Marks;
use super::rungs::{Rungs, is_large, summed};
use crate::table::Table;
use crate::table::said::OnMark;
use crate::table::steps::StepSink;
use crate::table::totals::{Amount, EndedStep, RowChange, Totals};
use heapline_shared_format::snapshot::history::{Change, Changes, DomainStep, Step, USER_MARK};
use heapline_shared_format::snapshot::{Domain, History};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Widths of new steps, in milliseconds, by the age of the recording: a program that has just begun
/// is seen in detail.
const WIDTHS: [(u64, u64); 3] = [(6_000, 10), (60_000, 100), (u64::MAX, 1_000)];
/// Least width of a step, as a multiple of the time taken by its end.
const SHARE: u32 = 100;

/// Recorder of the history of one program.
///
/// All times are of the aggregator's clock ([`crate::base::clock`]).
pub struct Recorder {
    begun: Duration,
    /// The present step ends at the first watermark from this time on.
    due: Duration,
    rungs: Rungs,
    marks: Marks,
    gauges: Gauges,
    told: BTreeMap<Domain, Told>,
    /// Changes for the next step: memory of stacks that the table has forgotten.
    forgotten: Vec<Change>,
    spent: EndedStep,
}

/// What the history has been told of a domain.
#[derive(Debug, Default)]
struct Told {
    current: Amount,
    total: Amount,
    frees: u64,
    apart: Bits,
}

/// A set of numbers of stacks.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn set(&mut self, number: u32, is_in: bool) {
        let word = number as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        if is_in { self.0[word] |= bit } else { self.0[word] &= !bit }
    }
}

impl Recorder {
    /// Begins a history at the time `now`, of at most `most` bytes. The first step has the memory
    /// that the table has already: that of a forked child.
    pub fn begin(now: Duration, most: usize, gauges: Gauges, table: &mut Table) -> Recorder {
        let mut recorder = Recorder {
            begun: now,
            due: now,
            rungs: Rungs::new(most),
            marks: Marks::default(),
            gauges,
            told: BTreeMap::new(),
            forgotten: Vec::new(),
            spent: EndedStep::default(),
        };
        recorder.end_step(now, table);
        recorder
    }

    /// Ends the present step if its time is over. Call at watermarks.
    pub fn tick(&mut self, now: Duration, table: &mut Table) {
        if now >= self.due {
            self.end_step(now, table);
        }
    }

    /// Ends the present step at the time `now`, which is a watermark.
    pub fn end_step(&mut self, now: Duration, table: &mut Table) {
        self.end_step_at(self.millis(now).max(self.rungs.least_end()), now, table);
    }

    /// Ends the present step behind the last step, so that no block born before is born in the next
    /// span of births.
    pub fn end_step_here(&mut self, now: Duration, table: &mut Table) {
        self.end_step_at(self.millis(now).max(self.rungs.end() + 1), now, table);
    }

    fn end_step_at(&mut self, end: u64, now: Duration, table: &mut Table) {
        let begun = Instant::now();
        let mut taken = Taken {
            apart: self.rungs.apart(),
            told: &mut self.told,
            forgotten: std::mem::take(&mut self.forgotten),
            domains: Vec::new(),
            changes: Vec::new(),
        };
        table.end_step(&mut self.spent, &mut taken);
        let Taken { domains, mut changes, forgotten, .. } = taken;
        changes.extend(forgotten);
        changes.sort_by_key(Change::key);
        let changes = Changes::encode(&summed(changes));
        let process = self.gauges.at_end_of_step(now);
        for child in table.take_born() {
            self.marks.add(end, "fork", &format!("process {child}"));
        }
        for (domain, stack) in self.rungs.push(Step { end, domains, process, changes }) {
            self.told.entry(domain).or_default().apart.set(stack, false);
        }
        let instant = |millis| self.begun + Duration::from_millis(millis);
        table.begin_span(instant(end), || self.rungs.steps().map(|step| instant(step.end)).collect());
        let (_, width) = WIDTHS.into_iter().find(|(age, _)| end < *age).unwrap_or(WIDTHS[WIDTHS.len() - 1]);
        let width = Duration::from_millis(width.max(self.rungs.least_width()));
        self.due = now + width.max(begun.elapsed() * SHARE);
    }

    /// Adds a mark at the time `now`. A mark of the user ends the present step, and the memory at
    /// the mark stays known.
    pub fn mark(&mut self, now: Duration, kind: &str, text: &str, table: &mut Table) {
        if kind == USER_MARK {
            self.end_step_here(now, table);
            self.rungs.pin(self.rungs.end());
        }
        let at = self.millis(now).max(self.rungs.end());
        self.marks.add(at, kind, text);
    }

    /// Notes that the table is about to forget all its blocks.
    pub fn before_clear(&mut self, now: Duration, table: &mut Table) {
        self.end_step(now, table);
        let sums = table.heaps().map(|(domain, heap)| (domain, heap.totals().stacks().collect::<Vec<_>>()));
        let ranges = table.ranges().layers().map(|(domain, layer)| (domain, layer.stacks().collect()));
        for (domain, stacks) in sums.chain(ranges) {
            let Some(told) = self.told.get_mut(&domain) else { continue };
            for (stack, amounts) in stacks.into_iter().filter(|&(stack, _)| told.apart.has(stack)) {
                let amount = amounts.current;
                self.forgotten.push(Change {
                    size: difference(0, amount.size),
                    count: difference(0, amount.count),
                    ..nothing(domain, Some(stack))
                });
            }
            *told = Told { current: told.current, ..Told::default() };
        }
    }

    /// Ends the present step at the time `now`, and returns the history up to this time. `taken` is
    /// the same time of day, and `utc_offset` the difference of local time in seconds.
    pub fn history(&mut self, now: Duration, taken: SystemTime, utc_offset: i32, table: &mut Table) -> History {
        self.end_step(now, table);
        let since_epoch = taken.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let taken = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        History {
            begun: taken.saturating_sub(self.rungs.end()),
            utc_offset,
            apart: self.rungs.apart(),
            steps: self.rungs.steps().cloned().collect(),
            marks: self.marks.list(),
        }
    }

    /// Begin of the history, on the aggregator's clock.
    pub fn begun(&self) -> Duration {
        self.begun
    }

    /// Returns the end of the last step, in milliseconds since the begin.
    #[cfg(test)]
    pub fn end(&self) -> u64 {
        self.rungs.end()
    }

    /// Bytes taken by the history.
    pub fn bytes(&self) -> usize {
        self.rungs.bytes() + self.told.values().map(|told| size_of_val(&told.apart.0[..])).sum::<usize>()
    }

    fn millis(&self, now: Duration) -> u64 {
        u64::try_from(now.saturating_sub(self.begun).as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the end of a step takes from the table.
struct Taken<'r> {
    apart: u64,
    told: &'r mut BTreeMap<Domain, Told>,
    forgotten: Vec<Change>,
    domains: Vec<DomainStep>,
    changes: Vec<Change>,
}

impl OnMark for Mutex<Recorder> {
    fn mark(&self, now: Duration, text: &str, table: &mut Table) {
        self.lock().unwrap_or_else(PoisonError::into_inner).mark(now, USER_MARK, text, table);
    }
}

impl StepSink for Taken<'_> {
    fn domain(
        &mut self,
        domain: Domain,
        totals: &Totals,
        step: &EndedStep,
        changes: &mut dyn Iterator<Item = RowChange>,
    ) {
        let (current, total, frees) = (totals.current(), totals.total(), totals.frees());
        let told = self.told.entry(domain).or_default();
        let allocated = Amount {
            size: total.size.wrapping_sub(told.total.size),
            count: total.count.wrapping_sub(told.total.count),
        };
        self.domains.push(DomainStep {
            domain,
            current: current.size,
            blocks: current.count,
            greatest: step.greatest,
            allocs: allocated.count,
            frees: frees.wrapping_sub(told.frees),
            allocated_bytes: allocated.size,
        });
        let mut rest = change(domain, None, told.current, current, allocated);
        (told.current, told.total, told.frees) = (current, total, frees);
        self.forgotten.iter().filter(|change| change.domain == domain).for_each(|change| take(&mut rest, change));
        for RowChange { stack, mut before, after, allocated: own } in changes {
            if !told.apart.has(stack) {
                if !is_large(after.size, current.size, self.apart) && !is_large(own.size, allocated.size, self.apart) {
                    continue;
                }
                told.apart.set(stack, true);
                before = Amount::default();
            }
            let change = change(domain, Some(stack), before, after, own);
            take(&mut rest, &change);
            self.changes.push(change);
        }
        self.changes.push(rest);
    }
}

fn nothing(domain: Domain, stack: Option<u32>) -> Change {
    Change { domain, stack, size: 0, count: 0, allocated_bytes: 0, allocs: 0 }
}

fn change(domain: Domain, stack: Option<u32>, before: Amount, after: Amount, allocated: Amount) -> Change {
    Change {
        domain,
        stack,
        size: difference(after.size, before.size),
        count: difference(after.count, before.count),
        allocated_bytes: allocated.size,
        allocs: allocated.count,
    }
}

/// Takes a stack's change out of the change of all.
fn take(rest: &mut Change, own: &Change) {
    rest.size = rest.size.wrapping_sub(own.size);
    rest.count = rest.count.wrapping_sub(own.count);
    rest.allocated_bytes = rest.allocated_bytes.wrapping_sub(own.allocated_bytes);
    rest.allocs = rest.allocs.wrapping_sub(own.allocs);
}

fn difference(after: u64, before: u64) -> i64 {
    after.wrapping_sub(before).cast_signed()
}
