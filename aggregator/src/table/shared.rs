//! State common to the blocks of all heaps: threads, weights of samples, times of birth, and the
//! program's own trace.

use super::births::Births;
use super::lifetimes::Ending;
use super::live::Block;
use super::program::ProgramTrace;
use super::threads::Threads;
use super::totals::Share;
use super::weights::Weights;

/// Threads, weights of samples, times of birth, and the program's own trace.
#[derive(Default)]
pub struct Shared {
    /// Threads with the number of their blocks.
    pub threads: Threads,
    /// Number of blocks that a sample stands for, by stack.
    pub weights: Weights,
    /// Spans of time that blocks are born in.
    pub births: Births,
    /// Trace seen by the program through `import tracemalloc`.
    pub program: ProgramTrace,
}

impl Shared {
    /// Returns the part of a block's thread in the sums.
    #[inline]
    pub fn share(&self, block: &Block) -> Share {
        Share { thread: block.thread, weight: self.weights.of(block.stack) }
    }

    /// Returns how a block ends.
    #[inline]
    pub fn ending(&self, block: &Block, is_temporary: bool) -> Ending {
        Ending { class: self.births.lifetime(block.birth), is_temporary }
    }

    /// Adds a block.
    #[inline]
    pub fn gain(&mut self, block: &Block) {
        self.threads.gain(block.thread);
        if block.in_program {
            self.program.gain(block.size);
        }
    }

    /// Removes a block.
    #[inline]
    pub fn lose(&mut self, block: &Block) {
        self.threads.lose(block.thread);
        if block.in_program {
            self.program.lose(block.size);
        }
    }

    /// Forgets all blocks.
    pub fn clear(&mut self) {
        self.threads.lose_all();
        self.program.clear();
    }
}
