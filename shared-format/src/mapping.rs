//! The content of a MAPPING record: a change of the program's address space. The first word belongs
//! to [`crate::event`]; this module writes and reads the other words.
//!
//! ```text
//!              63      55              47                                      4 3   0
//!              | stamp                                                           | 15 |
//!              | what 8 | 0             | address                                     |
//!              | 0                      | bytes, 48                                   |
//! MAP 1        | 0               | reserved 1 | stack id, 32                          |
//! PROTECT 2    | 0               | reserved 1 | stack id, 32                          |
//! UNMAP 3      |                                                                      |
//! UNMAPPED 4   |                                                                      |
//! KEPT 5       |                                                                      |
//! REMAPPED 6   | 0               | stays 1    | stack id, 32                          |
//!              | 0                      | old address                                 |
//!              | 0                      | old bytes, 48                               |
//! ```
//!
//! | Record | Meaning |
//! | --- | --- |
//! | MAP | the range is newly mapped, over any older mapping |
//! | PROTECT | the range may be used from now on, or no longer |
//! | UNMAP | a call of munmap, mremap, brk or sbrk is about to be made |
//! | UNMAPPED | the call has unmapped the range |
//! | KEPT | the call has failed |
//! | REMAPPED | the call returned this range |
//!
//! Addresses and sizes are multiples of a page. A range that a call may remove is announced before
//! the call (UNMAP), because another thread may get the addresses at once. A range that a call
//! creates is reported after the call.
//!
//! All ranges have bytes, with an exception: the old range of a REMAPPED may be empty. A shared
//! mapping mapped a second time leaves no old range.

use crate::word::{ADDRESS_BITS, DecodeError};

/// Size of a page, in bytes.
pub const PAGE_BYTES: u64 = 4096;

const END_OF_ADDRESSES: u64 = 1 << ADDRESS_BITS;
const WHAT_SHIFT: u32 = 56;
const FLAG: u64 = 1 << 32;

mod what {
    pub const MAP: u64 = 1;
    pub const PROTECT: u64 = 2;
    pub const UNMAP: u64 = 3;
    pub const UNMAPPED: u64 = 4;
    pub const KEPT: u64 = 5;
    pub const REMAPPED: u64 = 6;
}

/// A range of whole pages, in the part of the address space covered by records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    start: u64,
    end: u64,
}

impl Pages {
    /// Returns the pages of `bytes` bytes from `start`, with a whole last page, as counted by the
    /// kernel. None when `start` is inside a page, or the end is beyond the last address.
    #[inline]
    pub const fn covering(start: u64, bytes: u64) -> Option<Pages> {
        if !start.is_multiple_of(PAGE_BYTES) || start > END_OF_ADDRESSES || bytes > END_OF_ADDRESSES - start {
            return None;
        }
        // Start and the last address are multiples of a page, so the end does not pass the last
        // address.
        Some(Pages { start, end: start + bytes.next_multiple_of(PAGE_BYTES) })
    }

    /// First address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// End address: the first address behind the range.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Whether the range has no pages.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    const fn words(self, what: u64) -> [u64; 2] {
        [what << WHAT_SHIFT | self.start, self.bytes()]
    }
}

/// A decoded change of the address space. The module's header explains the kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the module's header draws the fields")]
pub enum Mapping {
    Map { pages: Pages, reserved: bool, stack: u32 },
    Protect { pages: Pages, reserved: bool, stack: u32 },
    Unmap { pages: Pages },
    Unmapped { pages: Pages },
    Kept { pages: Pages },
    Remapped { old: Pages, new: Pages, stays: bool, stack: u32 },
}

#[inline]
const fn asked_for(first: u64, what: u64, pages: Pages, flag: bool, stack: u32) -> [u64; 4] {
    let [second, third] = pages.words(what);
    [first, second, third, if flag { FLAG } else { 0 } | stack as u64]
}

#[inline]
const fn plain(first: u64, what: u64, pages: Pages) -> [u64; 3] {
    let [second, third] = pages.words(what);
    [first, second, third]
}

/// Returns a MAP record, behind the stamped word `first`. `reserved` pages may not be used yet
/// (`PROT_NONE`).
#[inline]
pub const fn map(first: u64, pages: Pages, reserved: bool, stack: u32) -> [u64; 4] {
    asked_for(first, what::MAP, pages, reserved, stack)
}

/// Returns a PROTECT record.
#[inline]
pub const fn protect(first: u64, pages: Pages, reserved: bool, stack: u32) -> [u64; 4] {
    asked_for(first, what::PROTECT, pages, reserved, stack)
}

/// Returns an UNMAP record: a call is about to be made, and may remove `pages`.
#[inline]
pub const fn unmap(first: u64, pages: Pages) -> [u64; 3] {
    plain(first, what::UNMAP, pages)
}

/// Returns an UNMAPPED record, or a KEPT record when the call has failed.
#[inline]
pub const fn unmap_ended(first: u64, pages: Pages, failed: bool) -> [u64; 3] {
    plain(first, if failed { what::KEPT } else { what::UNMAPPED }, pages)
}

/// Returns a REMAPPED record. With `stays`, the range `old` was not announced by an UNMAP.
#[inline]
pub const fn remapped(first: u64, old: Pages, new: Pages, stays: bool, stack: u32) -> [u64; 6] {
    let [a, b, c, d] = asked_for(first, what::REMAPPED, new, stays, stack);
    [a, b, c, d, old.start, old.bytes()]
}

/// Decodes the words behind the stamped word. Returns the change and the number of decoded words.
#[inline(never)]
pub(crate) fn decode(rest: &[u64]) -> Result<(Mapping, usize), DecodeError> {
    let &[second, third, ref rest @ ..] = rest else { return Err(DecodeError::Cut) };
    let pages = whole_pages(second & ((1 << WHAT_SHIFT) - 1), third)?;
    if pages.is_empty() {
        return Err(DecodeError::Malformed);
    }
    let asked_for = || {
        let word = *rest.first().ok_or(DecodeError::Cut)?;
        #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
        let stack = word as u32;
        if word < 2 * FLAG { Ok((word >= FLAG, stack)) } else { Err(DecodeError::Malformed) }
    };
    Ok(match second >> WHAT_SHIFT {
        what::MAP => {
            let (reserved, stack) = asked_for()?;
            (Mapping::Map { pages, reserved, stack }, 3)
        }
        what::PROTECT => {
            let (reserved, stack) = asked_for()?;
            (Mapping::Protect { pages, reserved, stack }, 3)
        }
        what::UNMAP => (Mapping::Unmap { pages }, 2),
        what::UNMAPPED => (Mapping::Unmapped { pages }, 2),
        what::KEPT => (Mapping::Kept { pages }, 2),
        what::REMAPPED => {
            let (stays, stack) = asked_for()?;
            let &[_, address, bytes, ..] = rest else { return Err(DecodeError::Cut) };
            (Mapping::Remapped { old: whole_pages(address, bytes)?, new: pages, stays, stack }, 5)
        }
        _ => return Err(DecodeError::Malformed),
    })
}

fn whole_pages(address: u64, bytes: u64) -> Result<Pages, DecodeError> {
    Pages::covering(address, bytes).filter(|pages| pages.bytes() == bytes).ok_or(DecodeError::Malformed)
}
