//! Stack ids: each distinct traceback of a thread gets a number, found with one probe.
//!
//! The key is a 64-bit hash of the frames, their positions and the depth. Two stacks of one thread
//! with an equal hash would count as one stack. At a million stacks the odds are one in thirty
//! million.

use crate::process;
use crate::unwind::Walk;
use core::ptr;

const FIRST_BITS: u32 = 8;
/// A table of up to 2^20 slots (16 MiB) is every thread's. A larger table must fit under the
/// ceiling of the collector's memory ([`process::may_own`]). A full table that may not grow is
/// forgotten, and the loss is counted. The stacks are then defined anew: more records, but no wrong
/// number.
const FREE_BITS: u32 = 20;
/// No table has more slots (1 GiB).
const LAST_BITS: u32 = 26;

#[repr(C)]
#[derive(Clone, Copy)]
struct Slot {
    hash: u64,
    id: u64,
}

/// The table of one thread. All zeros are an empty table without memory.
#[repr(C)]
pub struct StackTable {
    slots: *mut Slot,
    bits: u32,
    used: u32,
}

impl StackTable {
    /// Returns the id of a stack defined before.
    #[inline(always)]
    pub fn get(&self, hash: u64) -> Option<u32> {
        if self.slots.is_null() {
            return None;
        }
        let mask = (1usize << self.bits) - 1;
        #[expect(clippy::cast_possible_truncation, reason = "a position is the low bits; ids have 32 bits")]
        let mut i = hash as usize & mask;
        loop {
            // SAFETY: `i <= mask`, and the table has `mask + 1` slots, at least one of them empty.
            let slot = unsafe { self.slots.add(i).read() };
            if slot.hash == hash {
                #[expect(clippy::cast_possible_truncation, reason = "stored from a u32")]
                return Some(slot.id as u32);
            }
            if slot.hash == 0 {
                return None;
            }
            i = (i + 1) & mask;
        }
    }

    /// Stores a stack missing from the table. Returns false without memory for the stack.
    pub fn insert(&mut self, hash: u64, id: u32) -> bool {
        if (self.slots.is_null() || self.used >= 1 << (self.bits - 1)) && !self.grow() {
            return false;
        }
        self.place(Slot { hash, id: u64::from(id) });
        self.used += 1;
        true
    }

    fn place(&mut self, slot: Slot) {
        let mask = (1usize << self.bits) - 1;
        #[expect(clippy::cast_possible_truncation, reason = "a position is the low bits")]
        let mut i = slot.hash as usize & mask;
        // SAFETY: `i <= mask`, and at most half of the slots are taken.
        unsafe {
            while (*self.slots.add(i)).hash != 0 {
                i = (i + 1) & mask;
            }
            self.slots.add(i).write(slot);
        }
    }

    fn grow(&mut self) -> bool {
        let bits = match self.bits {
            _ if self.slots.is_null() => FIRST_BITS,
            bits if bits < FREE_BITS => bits + 2,
            bits => bits + 1,
        };
        if bits > FREE_BITS && (bits > LAST_BITS || !process::may_own(size_of::<Slot>() << bits)) {
            process::count_forgotten_stacks();
            self.clear();
            return true;
        }
        let Some(memory) = process::map_own(size_of::<Slot>() << bits) else { return false };
        let old = StackTable { slots: self.slots, bits: self.bits, used: self.used };
        // The pointer is stored first. A signal handler that never returns may leave a table larger
        // than `bits`, but never a smaller table.
        // SAFETY: both places are fields of `self`.
        unsafe {
            (&raw mut self.slots).write_volatile(memory.cast());
            (&raw mut self.bits).write_volatile(bits);
        }
        if !old.slots.is_null() {
            for i in 0..1usize << old.bits {
                // SAFETY: the slot lies inside the old table, which is unmapped only below.
                let slot = unsafe { old.slots.add(i).read() };
                if slot.hash != 0 {
                    self.place(slot);
                }
            }
            // SAFETY: no other code knows the old table.
            unsafe { process::unmap_own(old.slots.cast(), size_of::<Slot>() << old.bits) };
        }
        true
    }

    /// Unmaps the memory.
    ///
    /// # Safety
    /// The table is not used any more.
    pub unsafe fn unmap(&mut self) {
        if !self.slots.is_null() {
            // SAFETY: the caller guarantees that the table is unused, and the table has `1 << bits`
            // slots.
            unsafe { process::unmap_own(self.slots.cast(), size_of::<Slot>() << self.bits) };
            self.slots = ptr::null_mut();
        }
    }

    /// Removes all stacks, keeps the memory.
    pub fn clear(&mut self) {
        if !self.slots.is_null() {
            // SAFETY: the table has `1 << bits` slots, and zeros are empty slots.
            unsafe { ptr::write_bytes(self.slots, 0, 1 << self.bits) };
        }
        self.used = 0;
    }
}

/// Returns the key of a stack with frames that add up to `frames_hash`. A key is never 0.
#[inline(always)]
pub fn key(frames_hash: u64, walk: Walk) -> u64 {
    let ending = mix(u64::from(walk.total) | u64::from(walk.truncated) << 32, u64::MAX);
    match frames_hash.wrapping_add(ending) {
        0 => 1,
        key => key,
    }
}

/// Returns the hash of frames not kept, the most recent first: the sum of [`mix`] over the frames.
pub fn frames_hash(frames: &[u64]) -> u64 {
    frames.iter().rev().zip(0..).fold(0, |hash, (&pc, i)| hash.wrapping_add(mix(pc, i)))
}

/// Spreads an address and its position over 64 bits, so that sums tell stacks apart.
///
/// The result combines both halves of a full product, with a factor from the address and a factor
/// from the position. Every bit of either factor reaches all of the result. With less mixing, the
/// sums of a recursion between two places differ in a few bits only.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "two halves")]
pub fn mix(value: u64, position: u64) -> u64 {
    let factor = position.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ 0x9E37_79B9_7F4A_7C15;
    let product = u128::from(value ^ 0xA076_1D64_78BD_642F) * u128::from(factor);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
mod tests {
    use super::*;

    fn empty() -> StackTable {
        StackTable { slots: ptr::null_mut(), bits: 0, used: 0 }
    }

    #[test]
    fn ids_are_found_again_through_growth() {
        let mut table = empty();
        assert_eq!(table.get(7 | 1 << 63), None);
        let key = |i: u32| mix(u64::from(i), 3) | 1 << 63;
        for i in 0..50_000 {
            assert!(table.insert(key(i), i));
        }
        assert!((0..50_000).all(|i| table.get(key(i)) == Some(i)));
        assert_eq!(table.get(key(50_000)), None);
        table.clear();
        assert!((0..50_000).all(|i| table.get(key(i)).is_none()));
    }

    #[test]
    fn a_full_table_forgets_and_goes_on() {
        let mut table = empty();
        let key = |i: u32| mix(u64::from(i), 5) | 1 << 63;
        // There is no process here, and so no ceiling to fit under.
        let last = 1 << FREE_BITS;
        for i in 0..=last {
            assert!(table.insert(key(i), i));
        }
        assert_eq!(table.get(key(last)), Some(last));
        assert_eq!(table.get(key(0)), None);
    }

    /// Recursion between two places: all ways down twenty levels, and the difference between any
    /// two levels.
    #[test]
    fn sums_over_two_neighbouring_addresses_are_all_different() {
        const LEVELS: u64 = 20;
        for (a, b) in [(0x5555_5555_5191u64, 0x5555_5555_51a2), (0x7fff_f7e0_1000, 0x7fff_f7e0_1005)] {
            let mut sums = vec![0u64];
            for level in 0..LEVELS {
                let ends: Vec<u64> = sums.iter().map(|sum| sum.wrapping_add(mix(b, level))).collect();
                sums.iter_mut().for_each(|sum| *sum = sum.wrapping_add(mix(a, level)));
                sums.extend(ends);
            }
            // Both halves matter: the table finds a place by the lower half.
            let mut low: Vec<u32> = sums.iter().map(|&sum| sum as u32).collect();
            sums.sort_unstable();
            sums.dedup();
            assert_eq!(sums.len(), 1 << LEVELS);
            low.sort_unstable();
            low.dedup();
            assert!(low.len() > (1 << LEVELS) - 1000, "{} of {} low halves are different", low.len(), 1 << LEVELS);
        }
    }

    #[test]
    fn position_depth_and_end_are_part_of_the_key() {
        let walk = |total, truncated| Walk { stored: 2, total, truncated };
        let hash = frames_hash(&[1, 2]);
        assert_ne!(hash, frames_hash(&[2, 1]));
        assert_ne!(key(hash, walk(2, false)), key(hash, walk(3, false)));
        assert_ne!(key(hash, walk(2, false)), key(hash, walk(2, true)));
        // A sink holds the most recent frame first; the kept stack adds up from the root.
        assert_eq!(frames_hash(&[30, 20, 10]), mix(10, 0).wrapping_add(mix(20, 1)).wrapping_add(mix(30, 2)));
    }
}
