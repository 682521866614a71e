//! Sums of one domain: exact current and peak sums, and for each stack the amounts now, at the
//! peak, and since the start.
//!
//! Any allocation may set a new peak, so copying the amounts of all stacks at each peak is too
//! slow. Instead, each peak begins an epoch, and a stack saves its amount at the first change in an
//! epoch: constant work per event. A stack without a change since the peak has the same amount now
//! as at the peak.

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

    /// Subtracts a block, and saturates at 0. A sum saturated at the largest number has lost parts;
    /// only invalid records get so far.
    fn sub(&mut self, size: u64) {
        self.size = self.size.saturating_sub(size);
        self.count = self.count.saturating_sub(1);
    }
}

/// Amounts of one stack, on one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Row {
    current: Amount,
    total: Amount,
    /// `current` at the end of epoch `saved_in - 1`, i.e. at the peak which began epoch `saved_in`.
    saved: Amount,
    saved_in: u64,
}

/// Amounts of one stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackAmounts {
    /// Amount live now.
    pub current: Amount,
    /// Amount live at the domain's peak.
    pub peak: Amount,
    /// Amount allocated since the start.
    pub total: Amount,
}

/// Sums of one domain.
#[derive(Clone, Debug)]
pub struct Totals {
    rows: Vec<Row>,
    /// Number of peaks, from 1. The 0 of a new row is older than any epoch.
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
    /// Announces a change of a stack's row.
    #[inline]
    pub fn prefetch(&self, stack: u32) {
        prefetch(&self.rows, stack as usize);
    }

    /// Adds an allocated block.
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

    /// Removes a freed block.
    #[inline]
    pub fn free(&mut self, stack: u32, size: u64) {
        let row = &mut self.rows[stack as usize];
        row.save(self.epoch);
        row.current.sub(size);
        self.current.sub(size);
        self.frees += 1;
    }

    /// Counts an allocation of `size` bytes. The pieces are added by [`Totals::come`].
    pub fn count_alloc(&mut self, stack: u32, size: u64) {
        self.row(stack).total.add(size);
        self.total.add(size);
    }

    /// Counts a free. The pieces are removed by [`Totals::go`].
    pub fn count_free(&mut self) {
        self.frees += 1;
    }

    /// Adds a live piece of a stack.
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

    /// Removes a live piece of a stack.
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

    /// Adds a live block taken over from another stack.
    #[inline]
    pub fn join(&mut self, stack: u32, size: u64) {
        if stack as usize >= self.rows.len() {
            self.rows.resize(stack as usize + 1, Row::default());
        }
        let row = &mut self.rows[stack as usize];
        row.save(self.epoch);
        row.current.add(size);
    }

    /// Removes a live block handed over to another stack.
    #[inline]
    pub fn leave(&mut self, stack: u32, size: u64) {
        let row = &mut self.rows[stack as usize];
        row.save(self.epoch);
        row.current.sub(size);
    }

    /// Sets the peak to the present live amount (tracemalloc.reset_peak).
    pub fn reset_peak(&mut self) {
        self.peak = self.current.size;
        self.epoch += 1;
    }

    /// Returns the sums for a forked child. Current and peak amounts are the current amounts here;
    /// totals and frees are 0.
    pub fn inherited(&self) -> Totals {
        let rows = self.rows.iter().map(|row| Row { current: row.current, ..Row::default() }).collect();
        Totals { rows, current: self.current, peak: self.current.size, ..Totals::default() }
    }

    /// Forgets everything (tracemalloc.clear_traces).
    pub fn clear(&mut self) {
        *self = Totals::default();
    }

    /// Bytes taken by the rows.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.rows[..])
    }

    /// Amount live now.
    pub fn current(&self) -> Amount {
        self.current
    }

    /// Highest number of live bytes.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Amount allocated since the start.
    pub fn total(&self) -> Amount {
        self.total
    }

    /// Number of blocks freed since the start.
    pub fn frees(&self) -> u64 {
        self.frees
    }

    /// Amounts of every stack, by index, if the stack ever allocated or took a block over.
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
