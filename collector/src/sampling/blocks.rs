//! The set of sampled blocks: keys read by many threads and changed by few.
//!
//! ```text
//! key ──hash──> a counter of 4,096    ──> 0: not in the set    always in the nearest cache
//!          ──> a counter of 262,144   ──> 0: not in the set
//!          ──> two lines of eight keys each: compared
//! ```
//!
//! Reading writes nothing. The memory belongs to the process and is inherited by a forked child,
//! like the blocks. Keys of an earlier session stay: frees of such blocks are recorded, and the
//! records are ignored.

use crate::process;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

const FEW_BITS: u32 = 12;
const MANY_BITS: u32 = 18;
const LINE_BITS: u32 = 17;
const LINE: usize = 8;

/// The set. Zeros are an empty set.
#[repr(C, align(64))]
struct Blocks {
    few: [AtomicU8; 1 << FEW_BITS],
    many: [AtomicU8; 1 << MANY_BITS],
    lines: [[AtomicU64; LINE]; 1 << LINE_BITS],
}

static BLOCKS: AtomicPtr<Blocks> = AtomicPtr::new(ptr::null_mut());

#[inline(always)]
fn blocks() -> Option<&'static Blocks> {
    // SAFETY: `BLOCKS` is null, or points to memory unmapped only by `release`; zeros are valid.
    unsafe { BLOCKS.load(Ordering::Acquire).as_ref() }
}

#[inline(always)]
fn hash(key: u64) -> u64 {
    (key ^ key >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Returns `BITS` bits of the hash as an index, beginning at bit `from` from the top.
#[inline(always)]
fn part<const BITS: u32>(hash: u64, from: u32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "a few bits")]
    let bits = (hash >> (64 - from - BITS)) as usize;
    bits & ((1 << BITS) - 1)
}

/// Whether the key may be in the set. False is certain.
#[inline(always)]
pub fn may_have(key: u64) -> bool {
    let Some(blocks) = blocks() else { return false };
    let hash = hash(key);
    blocks.few[part::<FEW_BITS>(hash, 0)].load(Ordering::Relaxed) != 0
        && blocks.many[part::<MANY_BITS>(hash, 0)].load(Ordering::Relaxed) != 0
}

/// Whether the key is in the set.
pub fn has(key: u64) -> bool {
    blocks().is_some_and(|blocks| blocks.places(key).any(|place| place.load(Ordering::Relaxed) == key))
}

/// Puts the key in. False if there is no room or no memory.
#[cold]
pub fn insert(key: u64) -> bool {
    let Some(blocks) = blocks().or_else(create) else { return false };
    if has(key) {
        // The key of a block freed while nothing was traced.
        return true;
    }
    let is_free = |place: &&AtomicU64| {
        place.load(Ordering::Relaxed) == 0
            && place.compare_exchange(0, key, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    if blocks.emptier_first(key).find(is_free).is_none() {
        return false;
    }
    let hash = hash(key);
    rise(&blocks.many[part::<MANY_BITS>(hash, 0)]);
    rise(&blocks.few[part::<FEW_BITS>(hash, 0)]);
    true
}

/// Takes the key out. False if the key was not in the set.
#[cold]
pub fn take(key: u64) -> bool {
    let Some(blocks) = blocks() else { return false };
    let is_it = |place: &AtomicU64| {
        place.load(Ordering::Relaxed) == key
            && place.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    if !blocks.places(key).any(is_it) {
        return false;
    }
    let hash = hash(key);
    fall(&blocks.few[part::<FEW_BITS>(hash, 0)]);
    fall(&blocks.many[part::<MANY_BITS>(hash, 0)]);
    true
}

impl Blocks {
    fn line(&self, key: u64, second: bool) -> &[AtomicU64; LINE] {
        // The low bits of the product do not depend on the key's high bits.
        let hash = hash(hash(key) >> 7 | 1);
        &self.lines[part::<LINE_BITS>(hash, if second { LINE_BITS } else { 0 })]
    }

    fn places(&self, key: u64) -> impl Iterator<Item = &AtomicU64> {
        self.line(key, false).iter().chain(self.line(key, true))
    }

    fn emptier_first(&self, key: u64) -> impl Iterator<Item = &AtomicU64> {
        let used = |line: &[AtomicU64; LINE]| line.iter().filter(|place| place.load(Ordering::Relaxed) != 0).count();
        let (first, second) = (self.line(key, false), self.line(key, true));
        let (first, second) = if used(first) <= used(second) { (first, second) } else { (second, first) };
        first.iter().chain(second)
    }
}

/// Increments a counter. A counter at its maximum stays there: the answer is then less selective,
/// but still correct.
fn rise(counter: &AtomicU8) {
    let _ = counter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_add(1));
}

fn fall(counter: &AtomicU8) {
    let down = |n| if n == u8::MAX { None } else { u8::checked_sub(n, 1) };
    let _ = counter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, down);
}

fn create() -> Option<&'static Blocks> {
    let memory = process::map_own(size_of::<Blocks>())?.cast::<Blocks>();
    match BLOCKS.compare_exchange(ptr::null_mut(), memory, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: the memory is zeroed, has this size, is page-aligned, and is unmapped only by
        // `release`.
        Ok(_) => Some(unsafe { &*memory }),
        Err(_) => {
            // SAFETY: no other thread has seen the memory.
            unsafe { process::unmap_own(memory.cast(), size_of::<Blocks>()) };
            blocks()
        }
    }
}

/// Gives the memory back.
///
/// # Safety
/// Nobody uses the set any more.
pub unsafe fn release() {
    let blocks = BLOCKS.swap(ptr::null_mut(), Ordering::AcqRel);
    if !blocks.is_null() {
        // SAFETY: the caller guarantees that nobody uses the set any more.
        unsafe { process::unmap_own(blocks.cast(), size_of::<Blocks>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn what_is_in_is_found_by_all_and_what_is_out_is_not() {
        const N: u64 = 100_000;
        let key = |thread: u64, i: u64| 0x7f00_0000_0000 + (thread * N + i) * 48;
        let all_here = Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let all_here = &all_here;
                scope.spawn(move || {
                    for i in 0..N {
                        assert!(insert(key(thread, i)));
                        if i % 3 == 0 {
                            assert!(take(key(thread, i)));
                        }
                    }
                    all_here.wait();
                    for i in 0..N {
                        let other = key((thread + 1) % 4, i);
                        assert_eq!(may_have(other) && has(other), i % 3 != 0);
                    }
                    all_here.wait();
                    for i in 0..N {
                        assert_eq!(take(key(thread, i)), i % 3 != 0);
                        assert!(!has(key(thread, i)));
                    }
                });
            }
        });
        let left = (0..4).flat_map(|thread| (0..N).map(move |i| key(thread, i))).filter(|&key| may_have(key)).count();
        // Counters at their maximum.
        assert!(left < 400_000 / 2, "{left} look as if they were in");
    }
}
