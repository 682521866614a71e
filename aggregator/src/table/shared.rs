//! What the blocks of all heaps move together: their threads, and the program's own trace.

use super::live::Block;
use super::program::ProgramTrace;
use super::threads::Threads;

/// See the module.
#[derive(Default)]
pub struct Shared {
    /// Threads with their numbers of blocks.
    pub threads: Threads,
    /// What `import tracemalloc` sees.
    pub program: ProgramTrace,
}

impl Shared {
    /// A block comes.
    #[inline]
    pub fn gain(&mut self, block: &Block) {
        self.threads.gain(block.thread);
        if block.in_program {
            self.program.gain(block.size);
        }
    }

    /// A block goes.
    #[inline]
    pub fn lose(&mut self, block: &Block) {
        self.threads.lose(block.thread);
        if block.in_program {
            self.program.lose(block.size);
        }
    }

    /// All blocks are forgotten.
    pub fn clear(&mut self) {
        self.threads.lose_all();
        self.program.clear();
    }
}
