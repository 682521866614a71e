//! What a MAPPING record says: how the program changed its address space.
//!
//! ```text
//!              63      55              47                                       4 3   0
//!              | stamp                                                            | 15 |  (event.rs)
//!              | what 8 | 0             | address                                      |
//!              | 0                      | bytes, 48                                    |
//! MAP 1        | 0               | reserved 1 | stack id, 32                           |  mapped anew, over what was there
//! PROTECT 2    | 0               | reserved 1 | stack id, 32                           |  may be used from now on, or no more
//! UNMAP 3      |                                                                       |  about to be called: munmap, mremap
//! UNMAPPED 4   |                                                                       |  the call has unmapped it
//! KEPT 5       |                                                                       |  the call has failed
//! REMAPPED 6   | 0               | stays 1    | stack id, 32                           |  the call returned this range
//!              | 0                      | old address                                  |
//!              | 0                      | old bytes, 48                                |
//! ```
//!
//! Addresses and sizes are multiples of a page. What a call may take away is announced before it (UNMAP), since another
//! thread may be given the addresses at once; what it gives is told after it. All ranges have bytes, but for the old one of
//! a REMAPPED: a shared mapping that is mapped a second time leaves nothing.

use crate::event::{ADDRESS_BITS, DecodeError};

/// Bytes of a page.
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

/// A run of whole pages in the part of the address space that records reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    start: u64,
    end: u64,
}

impl Pages {
    /// The pages of `bytes` bytes from `start`, the last one whole, as the kernel counts them. None when `start` is inside a
    /// page, or the end beyond the last address.
    #[inline]
    pub const fn covering(start: u64, bytes: u64) -> Option<Pages> {
        if !start.is_multiple_of(PAGE_BYTES) || start > END_OF_ADDRESSES || bytes > END_OF_ADDRESSES - start {
            return None;
        }
        // Start and the last address are multiples of a page, so this does not pass it.
        Some(Pages { start, end: start + bytes.next_multiple_of(PAGE_BYTES) })
    }

    /// First address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// First address behind.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    const fn words(self, what: u64) -> [u64; 2] {
        [what << WHAT_SHIFT | self.start, self.bytes()]
    }
}

/// See the module.
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

/// A MAP record, behind the stamped word `first`. `reserved` pages may not be used yet (`PROT_NONE`).
#[inline]
pub const fn map(first: u64, pages: Pages, reserved: bool, stack: u32) -> [u64; 4] {
    asked_for(first, what::MAP, pages, reserved, stack)
}

/// A PROTECT record.
#[inline]
pub const fn protect(first: u64, pages: Pages, reserved: bool, stack: u32) -> [u64; 4] {
    asked_for(first, what::PROTECT, pages, reserved, stack)
}

/// An UNMAP record: a call that may take `pages` away is about to be made.
#[inline]
pub const fn unmap(first: u64, pages: Pages) -> [u64; 3] {
    plain(first, what::UNMAP, pages)
}

/// An UNMAPPED record, or KEPT when the call has failed.
#[inline]
pub const fn unmap_ended(first: u64, pages: Pages, failed: bool) -> [u64; 3] {
    plain(first, if failed { what::KEPT } else { what::UNMAPPED }, pages)
}

/// A REMAPPED record. `old` that `stays` was not announced by an UNMAP.
#[inline]
pub const fn remapped(first: u64, old: Pages, new: Pages, stays: bool, stack: u32) -> [u64; 6] {
    let [a, b, c, d] = asked_for(first, what::REMAPPED, new, stays, stack);
    [a, b, c, d, old.start, old.bytes()]
}

/// Decodes what follows the stamped word; also the number of words behind it.
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
