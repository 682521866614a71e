//! What is plausible about a frame pointer, for frames of code without unwind tables.
//!
//! ```text
//! slot     return address into the frame without tables
//!  ...     locals of the frame
//! bp       base pointer of the caller      plausible: above the slot, not far, on the same stack
//! above    return address into the caller  plausible: in code, behind a call
//! ```

use super::NO_CODE;
use heapline_shared_format::arch::elf::CODE_ADDRESS_BITS;

/// Greatest distance from a frame's return address to its saved base pointer, in bytes.
const FARTHEST: usize = 1 << 20;

/// Returns whether the base pointer may be the frame pointer of a frame with return address at
/// `slot`.
pub fn is_near(slot: usize, bp: usize) -> bool {
    bp & 7 == 0 && bp > slot && bp - slot <= FARTHEST
}

/// Returns whether a word may be a return address at all: neither a mark of a root, nor an address
/// that no program has.
pub fn may_be_return_address(word: usize) -> bool {
    (NO_CODE..1 << CODE_ADDRESS_BITS).contains(&word)
}
