//! Numbers of code objects: a number for each code object seen, never given twice.
//!
//! A code object's memory is a block of CPython's allocators, so the end of a code object is seen
//! by Heapline's `free`. There the number is forgotten, and every kept stack with the number is
//! forgotten too ([`generation`]). So another code object at the same address gets another number.
//!
//! The process has one table. CPython's lock lets one thread in at a time, except for allocations
//! without the lock. A thread that finds the table busy goes on without the table: a code object is
//! then numbered once more, or all numbers are forgotten.

use crate::platform::sys;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use heapline_shared_format::event::MAX_CODES;

/// Number of code without a description.
pub const UNKNOWN: u32 = 0;

const BITS: u32 = 17;
const SLOTS: usize = 1 << BITS;
/// Most entries of the table. A fuller table is cleared: code objects are then described anew.
const MOST: usize = SLOTS / 4 * 3;
/// Address in a forgotten entry. Searches continue behind the entry.
const GONE: usize = 1;

const FILTER_BITS: u32 = 18;
const FILTER_WORDS: usize = 1 << (FILTER_BITS - 6);

struct Slot {
    code: AtomicUsize,
    number: AtomicU32,
}

struct Codes {
    slots: [Slot; SLOTS],
    /// A bit for each hash of an address in the table. The filter alone settles most frees.
    filter: [AtomicU64; FILTER_WORDS],
    used: AtomicUsize,
    session: AtomicU32,
}

static CODES: AtomicPtr<Codes> = AtomicPtr::new(core::ptr::null_mut());
static IS_BUSY: AtomicBool = AtomicBool::new(false);
/// Set when a free could not be noted: the entries of the table are then not valid.
static IS_STALE: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU32 = AtomicU32::new(UNKNOWN + 1);
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Generation of the numbers. Changes when a numbered code object has ended.
#[inline(always)]
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Gives a forked child a table of its own: another thread of the parent may have been changing the
/// inherited table, and clearing the inherited table would copy its pages. The numbers continue.
pub fn in_child() {
    CODES.store(core::ptr::null_mut(), Ordering::Relaxed);
    IS_STALE.store(false, Ordering::Relaxed);
    GENERATION.fetch_add(1, Ordering::AcqRel);
    IS_BUSY.store(false, Ordering::Release);
}

/// Forgets all numbers, since code objects may have ended unseen.
pub fn forget_all() {
    IS_STALE.store(true, Ordering::Release);
    GENERATION.fetch_add(1, Ordering::AcqRel);
}

/// Returns the number of a code object already described in this session.
#[inline]
pub fn known(code: usize, session: u32) -> Option<u32> {
    // SAFETY: the table is never unmapped.
    let codes = unsafe { CODES.load(Ordering::Acquire).as_ref() }?;
    if codes.session.load(Ordering::Relaxed) != session || IS_STALE.load(Ordering::Acquire) {
        return None;
    }
    codes.get(code)
}

/// Returns a number not given before. [`UNKNOWN`] if all numbers are used up.
pub fn fresh() -> u32 {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    if number < MAX_CODES {
        return number;
    }
    // A program may make code objects for weeks. Later code objects have no names.
    NEXT.store(MAX_CODES, Ordering::Relaxed);
    UNKNOWN
}

/// Remembers the number of a described code object.
pub fn remember(code: usize, number: u32, session: u32) {
    if !with_table(|codes| codes.insert(code, number, session)) {
        // The end of the code object will not be seen: no kept stack may rely on the number.
        GENERATION.fetch_add(1, Ordering::AcqRel);
    }
}

/// Notes the free of a block of CPython's allocators. The block may be a code object.
#[inline(always)]
pub fn freed(address: usize) {
    let codes = CODES.load(Ordering::Relaxed);
    // SAFETY: the table is never unmapped.
    if let Some(codes) = unsafe { codes.as_ref() }
        && codes.may_have(address)
    {
        forget(address);
    }
}

#[cold]
#[inline(never)]
fn forget(address: usize) {
    let is_noted = with_table(|codes| {
        if let Some(slot) = codes.find(address) {
            slot.number.store(UNKNOWN, Ordering::Relaxed);
            slot.code.store(GONE, Ordering::Release);
            GENERATION.fetch_add(1, Ordering::AcqRel);
        }
    });
    if !is_noted {
        IS_STALE.store(true, Ordering::Release);
        GENERATION.fetch_add(1, Ordering::AcqRel);
    }
}

/// Runs `work` with the table. False, and nothing done, if another thread uses the table or there
/// is no memory.
fn with_table(work: impl FnOnce(&'static Codes)) -> bool {
    if IS_BUSY.swap(true, Ordering::Acquire) {
        return false;
    }
    let mut codes = CODES.load(Ordering::Acquire);
    if codes.is_null()
        && let Some(memory) = sys::map(size_of::<Codes>())
    {
        codes = memory.cast();
        CODES.store(codes, Ordering::Release);
    }
    // SAFETY: fresh zeros are an empty table, and the table is never unmapped.
    let is_done = unsafe { codes.as_ref() }.map(work).is_some();
    IS_BUSY.store(false, Ordering::Release);
    is_done
}

fn hash(code: usize) -> usize {
    let product = (code as u64 >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    usize::try_from(product >> 32).unwrap_or(0)
}

impl Codes {
    #[inline(always)]
    fn filter_bit(&self, code: usize) -> (&AtomicU64, u64) {
        let place = hash(code) >> (32 - FILTER_BITS);
        (&self.filter[place / 64 % FILTER_WORDS], 1 << (place % 64))
    }

    #[inline(always)]
    fn may_have(&self, code: usize) -> bool {
        let (word, bit) = self.filter_bit(code);
        word.load(Ordering::Relaxed) & bit != 0
    }

    fn find(&self, code: usize) -> Option<&Slot> {
        let first = hash(code);
        for i in 0..SLOTS {
            let slot = &self.slots[(first + i) % SLOTS];
            match slot.code.load(Ordering::Acquire) {
                0 => return None,
                found if found == code => return Some(slot),
                _ => {}
            }
        }
        None
    }

    fn get(&self, code: usize) -> Option<u32> {
        let number = self.find(code)?.number.load(Ordering::Acquire);
        (number != UNKNOWN).then_some(number)
    }

    fn insert(&self, code: usize, number: u32, session: u32) {
        let is_other = self.session.load(Ordering::Relaxed) != session;
        if is_other || IS_STALE.load(Ordering::Acquire) || self.used.load(Ordering::Relaxed) >= MOST {
            self.clear();
            self.session.store(session, Ordering::Relaxed);
        }
        let (word, bit) = self.filter_bit(code);
        word.fetch_or(bit, Ordering::Relaxed);
        let first = hash(code);
        let slots = (0..SLOTS).map(|i| &self.slots[(first + i) % SLOTS]);
        for slot in slots {
            let found = slot.code.load(Ordering::Relaxed);
            if found == code || found == 0 {
                // A reader between the two stores finds the address without a number, and takes the
                // code as unknown.
                slot.code.store(code, Ordering::Release);
                slot.number.store(number, Ordering::Release);
                self.used.fetch_add(usize::from(found == 0), Ordering::Relaxed);
                return;
            }
        }
    }

    #[cold]
    fn clear(&self) {
        for slot in &self.slots {
            slot.number.store(UNKNOWN, Ordering::Relaxed);
            slot.code.store(0, Ordering::Relaxed);
        }
        self.filter.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.used.store(0, Ordering::Relaxed);
        IS_STALE.store(false, Ordering::Release);
        GENERATION.fetch_add(1, Ordering::AcqRel);
    }
}
