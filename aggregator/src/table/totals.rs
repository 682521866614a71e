//! Sums of one domain: exact current and peak sums, and for each stack and each thread the amounts
//! now, at the peak, and since the start.
//!
//! Any allocation may set a new peak, so copying the amounts of all stacks at each peak is too
//! slow. Instead, each peak begins an epoch, and a row saves its amount at the first change in an
//! epoch: constant work per event. A row without a change since the peak has the same amount now as
//! at the peak.
//!
//! Threads are few, so the rows of threads stay in the nearest cache. A row of an ended thread is
//! given to another thread later. Before that, the row is added to the row of all ended threads
//! with such a name ([`Totals::fold`]).

use super::weights::WHOLE;
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
    /// `current` at the end of epoch `saved_in - 1`, i.e. at the peak which began epoch `saved_in`.
    saved: Amount,
    saved_in: u64,
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
    /// Number of peaks, from 1. The 0 of a new row is older than any epoch.
    epoch: u64,
    current: Amount,
    peak: u64,
    total: Amount,
    frees: u64,
}

impl Default for Totals {
    fn default() -> Totals {
        Totals {
            stacks: StackRows::default(),
            threads: Rows::default(),
            ended: Rows::default(),
            epoch: 1,
            current: Amount::default(),
            peak: 0,
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
        let (stack, thread) = (self.stacks.at(stack), self.threads.at(share.thread));
        stack.come(self.epoch, size, 1);
        stack.total.add(size, 1);
        thread.come(self.epoch, size, share.weight);
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
        self.stacks.at(stack).total.add(size, 1);
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
        self.stacks.at(stack).come(self.epoch, size, 1);
        self.threads.at(share.thread).come(self.epoch, size, share.weight);
    }

    /// Removes a live block handed over to another stack and thread.
    #[inline(always)]
    pub fn leave(&mut self, stack: u32, share: Share, size: u64) {
        self.stacks.at(stack).go(self.epoch, size, 1);
        self.threads.at(share.thread).go(self.epoch, size, share.weight);
    }

    /// Adds a live block to the sums of the domain.
    #[inline(always)]
    fn gain(&mut self, size: u64) {
        self.current.add(size, 1);
        if self.current.size > self.peak {
            self.peak = self.current.size;
            self.epoch += 1;
        }
    }

    /// Moves the sums of an ended thread without live blocks to a row of ended threads.
    pub fn fold(&mut self, thread: u32, ended: u32) {
        let Some(row) = self.threads.0.get_mut(thread as usize).map(std::mem::take) else { return };
        let amounts = row.amounts(self.epoch);
        if amounts.is_some() {
            let into = self.ended.at(ended);
            into.save(self.epoch);
            into.saved.add(amounts.peak.size, amounts.peak.count);
            into.total.add(amounts.total.size, amounts.total.count);
        }
    }

    /// Sets the peak to the present live amount (tracemalloc.reset_peak).
    pub fn reset_peak(&mut self) {
        self.peak = self.current.size;
        self.epoch += 1;
    }

    /// Returns the sums for a forked child. Current and peak amounts are the current amounts here;
    /// totals and frees are 0.
    pub fn inherited(&self) -> Totals {
        let (stacks, threads) = (self.stacks.inherited(), self.threads.inherited());
        Totals { stacks, threads, current: self.current, peak: self.current.size, ..Totals::default() }
    }

    /// Begins a copy.
    pub fn copy(&self) -> TotalsCopy {
        let (threads, ended) = (self.threads.clone(), self.ended.clone());
        let chunks = self.stacks.0.len();
        let sums = Totals { stacks: StackRows(vec![None; chunks]), threads, ended, ..*self };
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
        self.stacks.amounts(self.epoch)
    }

    /// Amounts of every thread, by index. Blocks of samples count as the blocks that the samples
    /// stand for.
    pub fn threads(&self) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        in_blocks(self.threads.amounts(self.epoch))
    }

    /// Amounts of ended threads, by the number of the name ([`Totals::fold`]).
    pub fn ended(&self) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        in_blocks(self.ended.amounts(self.epoch))
    }
}

fn in_blocks(rows: impl Iterator<Item = (u32, Amounts)>) -> impl Iterator<Item = (u32, Amounts)> {
    rows.map(|(index, Amounts { current, peak, total })| {
        (index, Amounts { current: current.in_blocks(), peak: peak.in_blocks(), total: total.in_blocks() })
    })
}

/// Returns the amounts of rows that ever allocated or took a block over.
fn some_amounts<'r>(rows: impl Iterator<Item = (u32, &'r Row)>, epoch: u64) -> impl Iterator<Item = (u32, Amounts)> {
    rows.map(move |(index, row)| (index, row.amounts(epoch))).filter(|(_, amounts)| amounts.is_some())
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

    fn amounts(&self, epoch: u64) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        let chunks = (0u32..).step_by(CHUNK).zip(&self.0);
        let rows = chunks.flat_map(|(first, chunk)| (first..).zip(chunk.iter().flat_map(|chunk| chunk.iter())));
        some_amounts(rows, epoch)
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

    fn amounts(&self, epoch: u64) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        some_amounts((0..).zip(&self.0), epoch)
    }
}

impl Row {
    /// Returns the row for a forked child.
    fn inherited(&self) -> Row {
        Row { current: self.current, ..Row::default() }
    }

    #[inline(always)]
    fn come(&mut self, epoch: u64, size: u64, count: u64) {
        self.save(epoch);
        self.current.add(size, count);
    }

    #[inline(always)]
    fn go(&mut self, epoch: u64, size: u64, count: u64) {
        self.save(epoch);
        self.current.sub(size, count);
    }

    #[inline(always)]
    fn save(&mut self, epoch: u64) {
        if self.saved_in != epoch {
            self.saved = self.current;
            self.saved_in = epoch;
        }
    }

    fn amounts(&self, epoch: u64) -> Amounts {
        let peak = if self.saved_in == epoch { self.saved } else { self.current };
        Amounts { current: self.current, peak, total: self.total }
    }
}
