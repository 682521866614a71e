//! Lifetimes of ended blocks, by stack.
//!
//! ```text
//! alloc, free as the thread's next event in the domain    temporary
//! alloc, free in one step of the history                  within a step
//! alloc, free in a later step                             a class, by the distance of the begins
//! ```
//!
//! The counts of a step are in the row of the stack's sums, which each free changes anyway
//! ([`super::totals`]). The end of the step adds them up here. Frees of older blocks count here at
//! once: for such a block a lookup in memory was waited for, and a count more makes no difference.

use heapline_shared_format::snapshot::LIFETIME_CLASSES;
use std::sync::Arc;

/// Numbers of ended blocks of a stack, by lifetime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(64))]
pub struct Lifetimes {
    /// Blocks freed by the next event of the allocating thread.
    pub temporary: u64,
    /// Blocks that ended in the step of their birth, with most of the temporary blocks.
    pub within_step: u64,
    /// Blocks that ended in a later step, by class.
    pub ended: [u64; LIFETIME_CLASSES],
}

/// End of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Class of the lifetime; none if the block was born in the present step.
    pub class: Option<u8>,
    /// Whether the block ended by the next event of the allocating thread.
    pub is_temporary: bool,
}

/// Counts of the present step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InStep {
    temporary: u32,
    within_step: u32,
}

impl InStep {
    /// Counts the end of a block. Returns the class of an older block, to be counted by
    /// [`ByStack::count`].
    #[inline(always)]
    pub fn count(&mut self, ending: Ending) -> Option<u8> {
        self.temporary = self.temporary.wrapping_add(ending.is_temporary.into());
        self.within_step = self.within_step.wrapping_add(ending.class.is_none().into());
        ending.class
    }
}

const CHUNK: usize = 64;
type Chunk = [Lifetimes; CHUNK];

/// Lifetimes by stack. A clone shares the rows, in chunks, until either side changes them.
#[derive(Clone, Debug, Default)]
pub struct ByStack(Vec<Option<Arc<Chunk>>>);

impl ByStack {
    /// Counts the end of a block from an earlier step.
    #[inline]
    pub fn count(&mut self, stack: u32, class: u8) {
        if let Some(count) = self.at(stack).ended.get_mut(usize::from(class)) {
            *count += 1;
        }
    }

    /// Adds the counts of a step, which become 0.
    pub fn add(&mut self, stack: u32, counts: &mut InStep) {
        let InStep { temporary, within_step } = std::mem::take(counts);
        if temporary != 0 || within_step != 0 {
            let row = self.at(stack);
            row.temporary += u64::from(temporary);
            row.within_step += u64::from(within_step);
        }
    }

    #[inline]
    fn at(&mut self, stack: u32) -> &mut Lifetimes {
        let index = stack as usize;
        if index / CHUNK >= self.0.len() {
            self.0.resize(index / CHUNK + 1, None);
        }
        let chunk = self.0[index / CHUNK].get_or_insert_with(|| Arc::new([Lifetimes::default(); CHUNK]));
        &mut Arc::make_mut(chunk)[index % CHUNK]
    }

    /// The rows with ended blocks, by rising stack.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Lifetimes)> + '_ {
        let chunks = (0u32..).step_by(CHUNK).zip(&self.0);
        let rows =
            chunks.flat_map(|(first, chunk)| (first..).zip(chunk.iter().flat_map(|chunk| chunk.iter().copied())));
        rows.filter(|&(_, row)| row != Lifetimes::default())
    }

    /// Bytes taken by the rows.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.0[..]) + self.0.iter().flatten().count() * size_of::<Chunk>()
    }
}
