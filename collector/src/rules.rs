//! The rule table: the way from a frame to its caller, by return address.
//!
//! The process has one table, with eight bytes an entry and two places for each address. An entry
//! holds enough of the address to be exact: a bijective hash of the address, sixteen bits by
//! position, the rest in the entry. A hit therefore needs no second look, and any thread may
//! overwrite any entry at any time with one store.

pub use crate::arch::rule::{Kind, Rule};
use crate::platform::sys;
use core::sync::atomic::{AtomicU64, Ordering};
use heapline_shared_format::arch::elf::CODE_ADDRESS_BITS as ADDRESS_BITS;

const INDEX_BITS: u32 = 16;
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

    /// Returns position and tag of an address. Odd multiplication is a bijection of the bits.
    /// The tag keeps the lowest bit of the position, since an entry may lie in either of two
    /// places.
    #[inline(always)]
    fn place(pc: usize) -> (usize, u64) {
        // 2^N over the golden ratio, N the bits of an address, puts neighbouring addresses far
        // apart.
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
                return Rule::from_bits(rule);
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
        self.entries[index].store(tag << 32 | u64::from(rule.bits()), Ordering::Relaxed);
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
