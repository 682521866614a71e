//! Number of blocks that a sample stands for, by the stack of the sample.
//!
//! Sums of stacks count samples: all samples of a stack have one weight, so a reader multiplies
//! afterwards. Sums of threads mix stacks, and add the weights.

use heapline_shared_format::snapshot::weight;

/// Weight of a single block. Weights are multiples of 1/256 of a block.
pub const WHOLE: u64 = 256;

/// Weights by stack.
#[derive(Clone, Debug, Default)]
pub struct Weights(Vec<u64>);

impl Weights {
    /// Sets the weight of a stack's samples.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; is not negative")]
    pub fn set(&mut self, stack: u32, size: u64, interval: u64) {
        if stack as usize >= self.0.len() {
            self.0.resize(stack as usize + 1, WHOLE);
        }
        self.0[stack as usize] = (weight::blocks(size, interval) * WHOLE as f64).round() as u64;
    }

    /// Returns the weight of each block of a stack.
    #[inline]
    pub fn of(&self, stack: u32) -> u64 {
        if self.0.is_empty() { WHOLE } else { self.0.get(stack as usize).copied().unwrap_or(WHOLE) }
    }
}
