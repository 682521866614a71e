//! Sums of one domain: exact current and peak sums, and for each stack and each thread the amounts
//! now, at the peak, and since the start.
//!
//! Any allocation may set a new peak, so copying the amounts of all stacks at each peak is too
//! slow. Instead, each peak begins an epoch, and a row saves its amount at the first change in an
//! epoch: constant work per event. A row without a change since the peak has the same amount now as
//! at the peak.
//!
//! Steps of the history begin epochs too ([`Totals::end_step`]). At the first change of a stack's
//! row in a step, the row as it was at the end of the last step is put on a list. So an event costs
//! the same one comparison with steps and without, and the end of a step looks at changed rows
//! only.
//!
//! Threads are few, so the rows of threads stay in the nearest cache. A row of an ended thread is
//! given to another thread later. Before that, the row is added to the row of all ended threads
//! with such a name ([`Totals::fold`]).

use super::weights::WHOLE;
use crate::arch::cache::prefetch;

/// Bytes and blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes.
    pub size: u64,
    /// Blocks.
    pub count: u64,
}

impl Amount {
    /// Adds blocks. Counts may wrap, because only invalid records get so far: a block leaves with
    /// the weight that it came with.
    fn add(&mut self, size: u64, count: u64) {
        self.size = self.size.saturating_add(size);
        self.count = self.count.wrapping_add(count);
    }

    /// Subtracts blocks. Bytes saturate at 0: a sum saturated at the largest number has lost parts;
    /// only invalid records get so far.
    fn sub(&mut self, size: u64, count: u64) {
        self.size = self.size.saturating_sub(size);
        self.count = self.count.wrapping_sub(count);
    }

    /// Subtracts an earlier amount of a sum that only rises.
    fn since(self, earlier: Amount) -> Amount {
        Amount { size: self.size.wrapping_sub(earlier.size), count: self.count.wrapping_sub(earlier.count) }
    }

    /// Converts a count in parts of a block to blocks, rounded.
    fn in_blocks(self) -> Amount {
        Amount { count: self.count.saturating_add(WHOLE / 2) / WHOLE, ..self }
    }
}

/// The thread's part in a change of the sums.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Index of the thread.
    pub thread: u32,
    /// Blocks that the block stands for, in parts of [`WHOLE`].
    pub weight: u64,
}

/// Amounts of one stack or thread, on one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Row {
    current: Amount,
    total: Amount,
    /// `current` at the last peak before epoch `saved_in`.
    saved: Amount,
    /// Epoch of the last change.
    saved_in: u64,
}

/// Numbers of epochs. An epoch begins at each peak and at the end of each step.
#[derive(Clone, Copy, Debug)]
struct Epochs {
    /// The present epoch, from 1. The 0 of a new row is older than any epoch.
    now: u64,
    /// Epoch begun by the last peak.
    peak: u64,
    /// Epoch begun by the last end of a step; 0 if no step has ended.
    step: u64,
}

impl Epochs {
    const FIRST: Epochs = Epochs { now: 1, peak: 1, step: 0 };

    fn begin_at_peak(&mut self) {
        self.now += 1;
        self.peak = self.now;
    }

    fn begin_at_step(&mut self) {
        self.now += 1;
        self.step = self.now;
    }
}

/// The row of a stack at the end of the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Before {
    /// Index of the row.
    row: u32,
    current: Amount,
    total: Amount,
}

/// A change of a stack's row in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// Index of the stack.
    pub stack: u32,
    /// Amount live at the begin of the step.
    pub before: Amount,
    /// Amount live at the end of the step.
    pub after: Amount,
    /// Amount allocated in the step.
    pub allocated: Amount,
}

/// An ended step of a domain's sums.
#[derive(Debug, Default)]
pub struct EndedStep {
    /// Greatest number of live bytes in the step.
    pub greatest: u64,
    /// Whether no step has ended before. All rows then count as changed, from nothing.
    pub is_first: bool,
    changed: Vec<Before>,
}

/// Amounts of one stack or thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Amount live now.
    pub current: Amount,
    /// Amount live at the domain's peak.
    pub peak: Amount,
    /// Amount allocated since the start.
    pub total: Amount,
}

impl Amounts {
    fn is_some(&self) -> bool {
        [self.current, self.peak, self.total].iter().any(|amount| amount.count > 0)
    }
}

/// Rows of threads, by index.
#[derive(Clone, Debug, Default)]
struct Rows(Vec<Row>);

/// Rows of stacks, by index, in chunks. A chunk without any change does not exist: stacks are
/// numbered over all domains, and most stacks allocate in a single domain.
#[derive(Clone, Debug, Default)]
struct StackRows(Vec<Option<Box<Chunk>>>);

/// Rows of a chunk: few enough for stacks in use here and there, and for a copy in a fraction of a
/// microsecond.
const CHUNK: usize = 64;
type Chunk = [Row; CHUNK];
/// Chunks copied by a step: some tenths of a millisecond.
const CHUNKS_A_STEP: usize = 128;

/// A copy of the sums at one instant, made while the sums go on. Rows of stacks are copied in
/// chunks: at the latest before the first change of a chunk.
#[derive(Debug)]
pub struct TotalsCopy {
    /// The sums, with the copied rows of stacks.
    sums: Totals,
    /// Whether a chunk is copied.
    is_copied: Vec<bool>,
    /// All chunks before this chunk are copied.
    next: usize,
}

/// Sums of one domain.
#[derive(Clone, Debug)]
pub struct Totals {
    stacks: StackRows,
    /// Rows of threads. Counts are in parts of [`WHOLE`].
    threads: Rows,
    /// Rows of ended threads, by the number of the name. Counts are in parts of [`WHOLE`].
    ended: Rows,
    epochs: Epochs,
    /// Rows of stacks changed in the present step. Empty until a step has ended.
    changed: Vec<Before>,
    current: Amount,
    peak: u64,
    /// Greatest value of `current` since the end of the last step and since the last reset of the
    /// peak. Never above `peak`, so an event below `highest` sets no peak.
    highest: u64,
    /// Greatest value of `current` in the present step before the last reset of the peak.
    highest_before_reset: u64,
    total: Amount,
    frees: u64,
}

impl Default for Totals {
    fn default() -> Totals {
        Totals {
            stacks: StackRows::default(),
            threads: Rows::default(),
            ended: Rows::default(),
            epochs: Epochs::FIRST,
            changed: Vec::new(),
            current: Amount::default(),
            peak: 0,
            highest: 0,
            highest_before_reset: 0,
            total: Amount::default(),
            frees: 0,
        }
    }
}

impl Totals {
    /// Announces a change of a stack's row.
    #[inline]
    pub fn prefetch(&self, stack: u32) {
        self.stacks.prefetch(stack);
    }

    /// Adds an allocated block.
    #[inline(always)]
    pub fn alloc(&mut self, stack: u32, share: Share, size: u64) {
        let (row, thread) = (self.stacks.at(stack), self.threads.at(share.thread));
        row.come(self.epochs, size, 1, |before| note(&mut self.changed, stack, before));
        row.total.add(size, 1);
        thread.come(self.epochs, size, share.weight, |_| ());
        thread.total.add(size, share.weight);
        self.total.add(size, 1);
        self.gain(size);
    }

    /// Removes a freed block.
    #[inline(always)]
    pub fn free(&mut self, stack: u32, share: Share, size: u64) {
        self.go(stack, share, size);
        self.frees += 1;
    }

    /// Counts an allocation of `size` bytes. The pieces are added by [`Totals::come`].
    pub fn count_alloc(&mut self, stack: u32, share: Share, size: u64) {
        let row = self.stacks.at(stack);
        row.save(self.epochs, |before| note(&mut self.changed, stack, before));
        row.total.add(size, 1);
        self.threads.at(share.thread).total.add(size, share.weight);
        self.total.add(size, 1);
    }

    /// Counts a free. The pieces are removed by [`Totals::go`].
    pub fn count_free(&mut self) {
        self.frees += 1;
    }

    /// Adds a live piece.
    pub fn come(&mut self, stack: u32, share: Share, size: u64) {
        self.join(stack, share, size);
        self.gain(size);
    }

    /// Removes a live piece.
    #[inline(always)]
    pub fn go(&mut self, stack: u32, share: Share, size: u64) {
        self.leave(stack, share, size);
        self.current.sub(size, 1);
    }

    /// Adds a live block taken over from another stack and thread.
    #[inline]
    pub fn join(&mut self, stack: u32, share: Share, size: u64) {
        self.stacks.at(stack).come(self.epochs, size, 1, |before| note(&mut self.changed, stack, before));
        self.threads.at(share.thread).come(self.epochs, size, share.weight, |_| ());
    }

    /// Removes a live block handed over to another stack and thread.
    #[inline(always)]
    pub fn leave(&mut self, stack: u32, share: Share, size: u64) {
        self.stacks.at(stack).go(self.epochs, size, 1, |before| note(&mut self.changed, stack, before));
        self.threads.at(share.thread).go(self.epochs, size, share.weight, |_| ());
    }

    /// Adds a live block to the sums of the domain.
    #[inline(always)]
    fn gain(&mut self, size: u64) {
        self.current.add(size, 1);
        if self.current.size > self.highest {
            self.highest = self.current.size;
            if self.current.size > self.peak {
                self.peak = self.current.size;
                self.epochs.begin_at_peak();
            }
        }
    }

    /// Ends a step, and begins the next step. Returns the greatest amount in the step and the
    /// changed rows, for [`Totals::changes`]. `spent` is an earlier step, whose memory is used
    /// again.
    pub fn end_step(&mut self, spent: EndedStep) -> EndedStep {
        let mut changed = spent.changed;
        changed.clear();
        std::mem::swap(&mut changed, &mut self.changed);
        let greatest = self.highest.max(self.highest_before_reset);
        (self.highest, self.highest_before_reset) = (self.current.size, 0);
        let is_first = self.epochs.step == 0;
        self.epochs.begin_at_step();
        EndedStep { greatest, is_first, changed }
    }

    /// Changes of stacks in a step that has just ended, in no order. A row may have changed forth
    /// and back.
    pub fn changes<'t>(&'t self, step: &'t EndedStep) -> impl Iterator<Item = RowChange> + 't {
        let change = |Before { row, current: before, total }: &Before| {
            let now = self.stacks.get(*row);
            RowChange { stack: *row, before: *before, after: now.current, allocated: now.total.since(*total) }
        };
        let first = step.is_first.then(|| {
            let nothing = Amount::default();
            self.stacks().map(move |(stack, amounts)| RowChange {
                stack,
                before: nothing,
                after: amounts.current,
                allocated: amounts.total,
            })
        });
        first.into_iter().flatten().chain(step.changed.iter().map(change))
    }

    /// Moves the sums of an ended thread without live blocks to a row of ended threads.
    pub fn fold(&mut self, thread: u32, ended: u32) {
        let Some(row) = self.threads.0.get_mut(thread as usize).map(std::mem::take) else { return };
        let amounts = row.amounts(self.epochs.peak);
        if amounts.is_some() {
            let into = self.ended.at(ended);
            into.save(self.epochs, |_| ());
            into.saved.add(amounts.peak.size, amounts.peak.count);
            into.total.add(amounts.total.size, amounts.total.count);
        }
    }

    /// Sets the peak to the present live amount (tracemalloc.reset_peak).
    pub fn reset_peak(&mut self) {
        self.highest_before_reset = self.highest_before_reset.max(self.highest);
        (self.peak, self.highest) = (self.current.size, self.current.size);
        self.epochs.begin_at_peak();
    }

    /// Returns the sums for a forked child. Current and peak amounts are the current amounts here;
    /// totals and frees are 0.
    pub fn inherited(&self) -> Totals {
        let (stacks, threads) = (self.stacks.inherited(), self.threads.inherited());
        let (current, size) = (self.current, self.current.size);
        Totals { stacks, threads, current, peak: size, highest: size, ..Totals::default() }
    }

    /// Begins a copy.
    pub fn copy(&self) -> TotalsCopy {
        let (threads, ended) = (self.threads.clone(), self.ended.clone());
        let chunks = self.stacks.0.len();
        let stacks = StackRows(vec![None; chunks]);
        let sums = Totals { stacks, threads, ended, changed: Vec::new(), ..*self };
        TotalsCopy { sums, is_copied: vec![false; chunks], next: 0 }
    }

    /// Forgets everything (tracemalloc.clear_traces).
    pub fn clear(&mut self) {
        *self = Totals::default();
    }

    /// Bytes taken by the rows.
    pub fn bytes(&self) -> usize {
        self.stacks.bytes() + size_of_val(&self.threads.0[..]) + size_of_val(&self.ended.0[..])
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
    pub fn stacks(&self) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        self.stacks.amounts(self.epochs.peak)
    }

    /// Amounts of every thread, by index. Blocks of samples count as the blocks that the samples
    /// stand for.
    pub fn threads(&self) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        in_blocks(self.threads.amounts(self.epochs.peak))
    }

    /// Amounts of ended threads, by the number of the name ([`Totals::fold`]).
    pub fn ended(&self) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        in_blocks(self.ended.amounts(self.epochs.peak))
    }
}

fn in_blocks(rows: impl Iterator<Item = (u32, Amounts)>) -> impl Iterator<Item = (u32, Amounts)> {
    rows.map(|(index, Amounts { current, peak, total })| {
        (index, Amounts { current: current.in_blocks(), peak: peak.in_blocks(), total: total.in_blocks() })
    })
}

/// Returns the amounts of rows that ever allocated or took a block over.
fn some_amounts<'r>(rows: impl Iterator<Item = (u32, &'r Row)>, peak: u64) -> impl Iterator<Item = (u32, Amounts)> {
    rows.map(move |(index, row)| (index, row.amounts(peak))).filter(|(_, amounts)| amounts.is_some())
}

impl TotalsCopy {
    /// Copies the row of a stack, unless the row is copied already. The row is about to change.
    #[inline]
    pub fn before(&mut self, totals: &Totals, stack: u32) {
        self.take(totals, stack as usize / CHUNK);
    }

    fn take(&mut self, totals: &Totals, number: usize) {
        if let Some(is_copied @ false) = self.is_copied.get_mut(number) {
            *is_copied = true;
            self.sums.stacks.0[number].clone_from(&totals.stacks.0[number]);
        }
    }

    /// Copies some rows. Returns whether the copy is complete.
    pub fn step(&mut self, totals: &Totals) -> bool {
        let until = self.is_copied.len().min(self.next + CHUNKS_A_STEP);
        (self.next..until).for_each(|number| self.take(totals, number));
        self.next = until;
        until == self.is_copied.len()
    }

    /// Returns the sums at the instant. The copy is complete.
    pub fn finish(self) -> Totals {
        self.sums
    }
}

impl StackRows {
    #[inline(always)]
    fn at(&mut self, index: u32) -> &mut Row {
        let index = index as usize;
        if !matches!(self.0.get(index / CHUNK), Some(Some(_))) {
            self.grow(index / CHUNK);
        }
        match &mut self.0[index / CHUNK] {
            Some(chunk) => &mut chunk[index % CHUNK],
            None => unreachable!("made above"),
        }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, chunk: usize) {
        if chunk >= self.0.len() {
            self.0.resize(chunk + 1, None);
        }
        self.0[chunk] = Some(Box::new([Row::default(); CHUNK]));
    }

    #[inline]
    fn prefetch(&self, index: u32) {
        let index = index as usize;
        if let Some(Some(chunk)) = self.0.get(index / CHUNK) {
            prefetch(&chunk[..], index % CHUNK);
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.0[..]) + self.0.iter().flatten().count() * size_of::<Chunk>()
    }

    fn inherited(&self) -> StackRows {
        let chunk = |chunk: &Chunk| Box::new(chunk.each_ref().map(Row::inherited));
        StackRows(self.0.iter().map(|rows| rows.as_deref().map(chunk)).collect())
    }

    /// The row of a stack that has changed before.
    fn get(&self, index: u32) -> Row {
        let index = index as usize;
        let chunk = self.0.get(index / CHUNK).and_then(Option::as_deref);
        chunk.map_or_else(Row::default, |chunk| chunk[index % CHUNK])
    }

    fn amounts(&self, peak: u64) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        let chunks = (0u32..).step_by(CHUNK).zip(&self.0);
        let rows = chunks.flat_map(|(first, chunk)| (first..).zip(chunk.iter().flat_map(|chunk| chunk.iter())));
        some_amounts(rows, peak)
    }
}

impl Rows {
    #[inline(always)]
    fn at(&mut self, index: u32) -> &mut Row {
        let index = index as usize;
        if index >= self.0.len() {
            self.grow(index);
        }
        &mut self.0[index]
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, index: usize) {
        self.0.resize(index + 1, Row::default());
    }

    fn inherited(&self) -> Rows {
        Rows(self.0.iter().map(Row::inherited).collect())
    }

    fn amounts(&self, peak: u64) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        some_amounts((0..).zip(&self.0), peak)
    }
}

impl Row {
    /// Returns the row for a forked child.
    fn inherited(&self) -> Row {
        Row { current: self.current, ..Row::default() }
    }

    /// Adds blocks. `note` receives the row at the first change in a step, as the row was before.
    #[inline(always)]
    fn come(&mut self, epochs: Epochs, size: u64, count: u64, note: impl FnOnce(&Row)) {
        self.save(epochs, note);
        self.current.add(size, count);
    }

    /// Removes blocks. `note` as for [`Row::come`].
    #[inline(always)]
    fn go(&mut self, epochs: Epochs, size: u64, count: u64, note: impl FnOnce(&Row)) {
        self.save(epochs, note);
        self.current.sub(size, count);
    }

    #[inline(always)]
    fn save(&mut self, epochs: Epochs, note: impl FnOnce(&Row)) {
        if self.saved_in != epochs.now {
            if self.saved_in < epochs.peak {
                self.saved = self.current;
            }
            if self.saved_in < epochs.step {
                note(self);
            }
            self.saved_in = epochs.now;
        }
    }

    /// Returns the amounts. `peak` is the epoch begun by the last peak.
    fn amounts(&self, peak: u64) -> Amounts {
        let at_peak = if self.saved_in >= peak { self.saved } else { self.current };
        Amounts { current: self.current, peak: at_peak, total: self.total }
    }
}

/// Puts the row of a stack on the list of changed rows.
#[cold]
#[inline(never)]
fn note(changed: &mut Vec<Before>, row: u32, before: &Row) {
    changed.push(Before { row, current: before.current, total: before.total });
}
