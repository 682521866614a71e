//! The rule table: the way from a frame to its caller, by return address.
//!
//! The process has one table, with eight bytes an entry and two places for each address. An entry
//! holds enough of the address to be exact: a bijective hash of the 47 bits, sixteen by position,
//! the rest in the entry. A hit therefore needs no second look, and any thread may overwrite any
//! entry at any time with one store.

use crate::platform::sys;
use core::sync::atomic::{AtomicU64, Ordering};

/// A packed rule: kind in 3 bits, CFA offset in 14, [`Rule::at_call`] in 1, rbp offset in 14.
/// Offsets are in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule(u32);

/// Kind of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No unwind information: the walk ends, truncated.
    Unknown,
    /// CFA = stack pointer + offset.
    Sp,
    /// CFA = rbp + offset.
    Bp,
    /// CFA = word at (rbp - offset), rbp = word at rbp: a frame that realigned its stack.
    Realigned,
    /// The root of the stack: the return address is marked undefined.
    Root,
    /// The rule needs more than rsp, rbp and memory at the CFA: the reader of the table cannot
    /// follow.
    Complex,
    /// No unwind information, but code that may keep a frame pointer: as [`Kind::Bp`], if rbp leads
    /// to a plausible caller.
    FramePointer,
}

impl Rule {
    /// The rule of [`Kind::Unknown`].
    pub const UNKNOWN: Rule = Rule(1);
    /// The rule of [`Kind::Root`].
    pub const ROOT: Rule = Rule(5);
    /// The rule of [`Kind::Complex`].
    pub const COMPLEX: Rule = Rule(6);
    /// The rule of [`Kind::FramePointer`].
    pub const FRAME_POINTER: Rule = Rule(7);

    const AT_CALL: u32 = 1 << 17;

    /// Returns the rule with the mark that the return address stands behind a call, in code.
    pub fn at_call(self) -> Rule {
        Rule(self.0 | Rule::AT_CALL)
    }

    /// Returns whether the return address stands behind a call, in code.
    #[inline(always)]
    pub fn is_at_call(self) -> bool {
        self.0 & Rule::AT_CALL != 0
    }

    /// Returns a rule with the CFA at an offset from the stack pointer. Offsets are in bytes.
    /// `bp_offset` is the distance below the CFA where rbp was saved, 0 without a saved rbp.
    /// Returns [`Rule::COMPLEX`] for offsets too large, and where the frame would not hold its own
    /// words.
    pub fn sp(cfa_offset: i64, bp_offset: i64) -> Rule {
        if cfa_offset < 8 || bp_offset > cfa_offset { Rule::COMPLEX } else { Rule::pack(2, cfa_offset, bp_offset) }
    }

    /// Returns whether the kind is [`Kind::Sp`].
    #[inline(always)]
    pub fn is_sp(self) -> bool {
        self.0 & 7 == 2
    }

    /// Returns a rule with the CFA at an offset from rbp. The offsets are as for [`Rule::sp`].
    pub fn bp(cfa_offset: i64, bp_offset: i64) -> Rule {
        Rule::pack(3, cfa_offset, bp_offset)
    }

    /// Returns a rule with the CFA stored `offset` bytes below rbp.
    pub fn realigned(offset: i64) -> Rule {
        Rule::pack(4, offset, 0)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ranges checked first")]
    fn pack(kind: u32, cfa_offset: i64, bp_offset: i64) -> Rule {
        let fits = |offset: i64, bits: u32| offset >= 0 && offset % 8 == 0 && offset >> 3 < 1 << bits;
        if !fits(cfa_offset, 14) || !fits(bp_offset, 14) {
            return Rule::COMPLEX;
        }
        Rule(kind | ((cfa_offset >> 3) as u32) << 3 | ((bp_offset >> 3) as u32) << 18)
    }

    /// Returns the kind of the rule.
    #[inline(always)]
    pub fn kind(self) -> Kind {
        match self.0 & 7 {
            2 => Kind::Sp,
            3 => Kind::Bp,
            4 => Kind::Realigned,
            5 => Kind::Root,
            6 => Kind::Complex,
            7 => Kind::FramePointer,
            _ => Kind::Unknown,
        }
    }

    /// Returns the offset of the CFA in bytes.
    #[inline(always)]
    pub fn cfa_offset(self) -> usize {
        ((self.0 >> 3 & 0x3fff) << 3) as usize
    }

    /// Returns the offset of the saved rbp in bytes; 0 when rbp is unchanged.
    #[inline(always)]
    pub fn bp_offset(self) -> usize {
        ((self.0 >> 18) << 3) as usize
    }
}

const INDEX_BITS: u32 = 16;
const ADDRESS_BITS: u32 = 47;
const TAG_MASK: u64 = 0xffff_ffff;

/// The rule table. All zeros are an empty table.
#[derive(Clone, Copy)]
pub struct Table {
    entries: &'static [AtomicU64; 1 << INDEX_BITS],
}

impl Table {
    /// Bytes of a table.
    pub const BYTES: usize = 8 << INDEX_BITS;

    /// Maps memory for a new, empty table.
    pub fn map() -> Option<Table> {
        let memory = sys::map(Table::BYTES)?;
        // SAFETY: the memory is fresh, zeroed, page-aligned and `Table::BYTES` long. The caller of
        // [`Table::unmap`] guarantees that no use follows.
        Some(Table { entries: unsafe { &*memory.cast() } })
    }

    /// Unmaps the table.
    ///
    /// # Safety
    /// No thread uses the table any more.
    pub unsafe fn unmap(self) {
        // SAFETY: the caller guarantees that the table is unused, and `map` mapped `Table::BYTES`
        // bytes.
        unsafe { sys::unmap(self.entries.as_ptr().cast_mut().cast(), Table::BYTES) };
    }

    /// Returns position and tag of an address. Odd multiplication is a bijection of the 47 bits.
    /// The tag keeps the lowest bit of the position, since an entry may lie in either of two
    /// places.
    #[inline(always)]
    fn place(pc: usize) -> (usize, u64) {
        // 2^47 over the golden ratio puts neighbouring addresses far apart.
        let hash = (pc as u64).wrapping_mul(0x4F1B_BCDC_BFA5) & ((1 << ADDRESS_BITS) - 1);
        ((hash >> (ADDRESS_BITS - INDEX_BITS)) as usize, hash & TAG_MASK)
    }

    /// Returns the rule of a return address, if known.
    #[inline(always)]
    pub fn get(self, pc: usize) -> Option<Rule> {
        let (index, tag) = Table::place(pc);
        for index in [index, index ^ 1] {
            let entry = self.entries[index & ((1 << INDEX_BITS) - 1)].load(Ordering::Relaxed);
            #[expect(clippy::cast_possible_truncation, reason = "the low half")]
            let rule = entry as u32;
            if entry >> 32 == tag {
                // An empty entry has a tag too.
                return (rule != 0).then_some(Rule(rule));
            }
        }
        None
    }

    /// Stores a rule, in place of another rule if both places are taken.
    pub fn insert(self, pc: usize, rule: Rule) {
        if pc >> ADDRESS_BITS != 0 {
            return;
        }
        let (index, tag) = Table::place(pc);
        let free = |i: &usize| self.entries[*i].load(Ordering::Relaxed) == 0;
        let index = [index, index ^ 1].into_iter().find(free).unwrap_or(index);
        self.entries[index].store(tag << 32 | u64::from(rule.0), Ordering::Relaxed);
    }

    /// Removes all rules. To be called when a module is loaded or unloaded.
    pub fn clear(self) {
        for entry in self.entries {
            entry.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_keeps_what_fits_and_is_complex_otherwise() {
        let rule = Rule::sp(1024, 16);
        assert_eq!((rule.kind(), rule.cfa_offset(), rule.bp_offset()), (Kind::Sp, 1024, 16));
        let rule = Rule::bp(16, 0);
        assert_eq!((rule.kind(), rule.cfa_offset(), rule.bp_offset()), (Kind::Bp, 16, 0));
        let largest = ((1 << 14) - 1) * 8;
        let rule = Rule::sp(largest, largest);
        assert_eq!((rule.cfa_offset(), rule.bp_offset(), rule.is_at_call()), (131_064, 131_064, false));
        let marked = rule.at_call();
        assert_eq!((marked.kind(), marked.cfa_offset(), marked.bp_offset()), (Kind::Sp, 131_064, 131_064));
        assert!(marked.is_at_call() && marked.is_sp());
        assert_eq!(Rule::FRAME_POINTER.at_call().kind(), Kind::FramePointer);
        for misfit in [
            Rule::sp(largest + 8, 0),
            Rule::sp(12, 0),
            Rule::sp(0, 0),
            Rule::sp(16, 24),
            Rule::bp(-8, 0),
            Rule::sp(8, 1 << 18),
        ] {
            assert_eq!(misfit, Rule::COMPLEX);
        }
    }

    #[test]
    fn the_table_is_exact() {
        let table = Table::map().expect("memory");
        let addresses = (0..40_000usize).map(|i| 0x5555_5540_0000 + i * 7);
        for (i, pc) in (0..).zip(addresses.clone()) {
            table.insert(pc, Rule::sp((1 + i % 1000) * 8, 0));
        }
        let mut hits = 0;
        for (i, pc) in (0..).zip(addresses) {
            if let Some(rule) = table.get(pc) {
                assert_eq!(rule, Rule::sp((1 + i % 1000) * 8, 0), "rule of another address at {pc:#x}");
                hits += 1;
            }
        }
        assert!(hits > 28_000, "only {hits} of 40000 rules were kept");
        for other in (0..40_000usize).map(|i| 0x7fff_f000_0000 + i * 16) {
            assert_eq!(table.get(other), None);
        }
        table.clear();
        assert_eq!(table.get(0x5555_5540_0000), None);
    }

    #[test]
    fn addresses_beyond_the_hash_are_never_stored() {
        let table = Table::map().expect("memory");
        table.insert(1 << 47 | 0x1234, Rule::ROOT);
        assert_eq!(table.get(0x1234), None);
    }
}
