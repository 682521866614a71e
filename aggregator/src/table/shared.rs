//! State changed by the blocks of all heaps: threads, and the program's own trace.

use super::live::Block;
use super::program::ProgramTrace;
use super::threads::Threads;

/// Threads and the program's own trace.
#[derive(Default)]
pub struct Shared {
    /// Threads with the number of their blocks.
    pub threads: Threads,
    /// Trace seen by the program through `import tracemalloc`.
    pub program: ProgramTrace,
}

impl Shared {
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
