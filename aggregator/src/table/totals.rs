//! Sums of one domain: current and peak exactly, and per stack what it holds now, held at the peak, and ever asked for.
//!
//! A new peak may come with every allocation, so the value of each stack at the peak cannot be copied then. Instead
//! each peak begins an epoch, and a stack saves its value at its first change in the epoch: constant work per event.
//! A stack that has not changed since the peak holds now what it held then.

use crate::base::prefetch::prefetch;

/// Bytes and blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes.
    pub size: u64,
    /// Blocks.
    pub count: u64,
}

impl Amount {
    fn add(&mut self, size: u64) {
        self.size = self.size.saturating_add(size);
        self.count += 1;
    }

    /// Beyond the largest number, where only nonsense gets, a sum has lost what it was made of.
    fn sub(&mut self, size: u64) {
        self.size = self.size.saturating_sub(size);
        self.count = self.count.saturating_sub(1);
    }
}

/// One stack, on one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Row {
    current: Amount,
    total: Amount,
    /// `current` at the end of epoch `saved_in - 1`, that is, at the peak which began epoch `saved_in`.
    saved: Amount,
    saved_in: u64,
}

/// What one stack holds, held and asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackAmounts {
    /// Live now.
    pub current: Amount,
    /// Live at the domain's peak.
    pub peak: Amount,
    /// Allocated since the start.
    pub total: Amount,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Totals {
    rows: Vec<Row>,
    /// Counts peaks, from 1: a new row's 0 is older than any.
    epoch: u64,
    current: Amount,
    peak: u64,
    total: Amount,
    frees: u64,
}

impl Default for Totals {
    fn default() -> Totals {
        Totals { rows: Vec::new(), epoch: 1, current: Amount::default(), peak: 0, total: Amount::default(), frees: 0 }
    }
}

impl Totals {
    /// Says that a stack will be changed soon.
    #[inline]
    pub fn prefetch(&self, stack: u32) {
        prefetch(&self.rows, stack as usize);
    }

    /// A block was allocated.
    #[inline]
    pub fn alloc(&mut self, stack: u32, size: u64) {
        if stack as usize >= self.rows.len() {
            self.rows.resize(stack as usize + 1, Row::default());
        }
        let row = &mut self.rows[stack as usize];
        row.save(self.epoch);
        row.current.add(size);
        row.total.add(size);
        self.current.add(size);
        self.total.add(size);
        if self.current.size > self.peak {
            self.peak = self.current.size;
            self.epoch += 1;
        }
    }

    /// A block that was allocated here was freed.
    #[inline]
    pub fn free(&mut self, stack: u32, size: u64) {
        let row = &mut self.rows[stack as usize];
        row.save(self.epoch);
        row.current.sub(size);
        self.current.sub(size);
        self.frees += 1;
    }

    /// This stack was given so many bytes, which come piece by piece ([`Totals::come`]).
    pub fn count_alloc(&mut self, stack: u32, size: u64) {
        self.row(stack).total.add(size);
        self.total.add(size);
    }

    /// A call has given back, which goes piece by piece ([`Totals::go`]).
    pub fn count_free(&mut self) {
        self.frees += 1;
    }

    /// A piece of what this stack was given comes.
    pub fn come(&mut self, stack: u32, size: u64) {
        let epoch = self.epoch;
        let row = self.row(stack);
        row.save(epoch);
        row.current.add(size);
        self.current.add(size);
        if self.current.size > self.peak {
            self.peak = self.current.size;
            self.epoch += 1;
        }
    }

    /// A piece of what this stack was given goes.
    pub fn go(&mut self, stack: u32, size: u64) {
        let epoch = self.epoch;
        let row = self.row(stack);
        row.save(epoch);
        row.current.sub(size);
        self.current.sub(size);
    }

    fn row(&mut self, stack: u32) -> &mut Row {
        if stack as usize >= self.rows.len() {
            self.rows.resize(stack as usize + 1, Row::default());
        }
        &mut self.rows[stack as usize]
    }

    /// A block that is live has become this stack's.
    #[inline]
    pub fn join(&mut self, stack: u32, size: u64) {
        if stack as usize >= self.rows.len() {
            self.rows.resize(stack as usize + 1, Row::default());
        }
        let row = &mut self.rows[stack as usize];
        row.save(self.epoch);
        row.current.add(size);
    }

    /// A block that lives on is this stack's no more.
    #[inline]
    pub fn leave(&mut self, stack: u32, size: u64) {
        let row = &mut self.rows[stack as usize];
        row.save(self.epoch);
        row.current.sub(size);
    }

    /// The peak becomes what is live now (tracemalloc.reset_peak).
    pub fn reset_peak(&mut self) {
        self.peak = self.current.size;
        self.epoch += 1;
    }

    /// The sums of a child that begins with what is live here: current and peak are that, and nothing was allocated yet.
    pub fn inherited(&self) -> Totals {
        let rows = self.rows.iter().map(|row| Row { current: row.current, ..Row::default() }).collect();
        Totals { rows, current: self.current, peak: self.current.size, ..Totals::default() }
    }

    /// Forgets everything (tracemalloc.clear_traces).
    pub fn clear(&mut self) {
        *self = Totals::default();
    }

    /// Bytes that the rows take.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.rows[..])
    }

    /// Live now.
    pub fn current(&self) -> Amount {
        self.current
    }

    /// Most bytes that were live at once.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Allocated since the start.
    pub fn total(&self) -> Amount {
        self.total
    }

    /// Blocks freed since the start.
    pub fn frees(&self) -> u64 {
        self.frees
    }

    /// Every stack that ever allocated, or has a block that another allocated, by index.
    pub fn stacks(&self) -> impl Iterator<Item = (u32, StackAmounts)> + '_ {
        let rows = (0..).zip(&self.rows).map(|(stack, row)| {
            let peak = if row.saved_in == self.epoch { row.saved } else { row.current };
            (stack, StackAmounts { current: row.current, peak, total: row.total })
        });
        rows.filter(|(_, amounts)| [amounts.current, amounts.peak, amounts.total].iter().any(|amount| amount.count > 0))
    }
}

impl Row {
    #[inline]
    fn save(&mut self, epoch: u64) {
        if self.saved_in != epoch {
            self.saved = self.current;
            self.saved_in = epoch;
        }
    }
}
