//! Room on the stack for a hook and for the records of the hook.
//!
//! A walk needs some kilobytes of stack. A handler on an alternate stack, or a coroutine, may have
//! less left. A hook therefore records on the present stack only where the stack is known to be
//! large: the stack of the first thread, or a stack made by the C library for a thread. Anywhere
//! else the hook switches to a stack of the collector while recording, and takes some hundred bytes
//! of the program's stack.
//!
//! ```text
//! slot in [`Room`]: record here               (two comparisons)
//! else [`with_room`]: find the stack's extent
//!     stack of a thread: remember the extent, record here
//!     any other stack:   record on a stack of the collector
//! ```
//!
//! A stack given to a thread by the program (`pthread_attr_setstack`) is taken for a stack made by
//! the C library. Where less than a walk needs is left there, and readable memory lies below, the
//! walk uses the memory below.

use super::Thread;
use super::thread_state;
use crate::arch::{stack as calls, thread_words};
use crate::platform::{sys, tls};
use crate::process;
use core::ffi::c_ulong;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

const PAGE: usize = 4096;
/// Bytes of stack needed for recording.
const NEEDED: usize = 8 << 10;
/// Bytes of a stack of the collector. A signal handler of the program may come to run on such a
/// stack.
const OWN_BYTES: usize = 256 << 10;
/// Greatest extent of the first thread's stack taken for sure, in bytes.
const MOST_OF_FIRST: usize = 8 << 20;
/// Greatest distance from the end of another thread's stack at which pages are examined, in bytes.
const MOST_OF_OTHER: usize = 1 << 20;
/// Number of pages examined below the stack pointer.
const PAGES_AHEAD: usize = 16;
/// Addresses equal above this bit count as the same stack, among stacks without room.
const REGION_BITS: u32 = 14;
/// Number of remembered stacks without room. More than a single entry, because a thread may go from
/// one coroutine to another.
const REGIONS: usize = 8;

/// The part of a thread's stack on which hooks may record: `low..low + bytes`. All zeros are no
/// part.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Room {
    low: usize,
    bytes: usize,
}

impl Room {
    /// Returns whether a hook entered at `slot` may record on the present stack.
    #[inline(always)]
    pub fn has(&self, slot: usize) -> bool {
        slot.wrapping_sub(self.low) < self.bytes
    }

    fn between(low: usize, end: usize) -> Room {
        Room { low, bytes: end.saturating_sub(low) }
    }

    /// Returns the end of the part, which is the end of the stack.
    pub(super) fn end(&self) -> usize {
        self.low + self.bytes
    }

    /// Returns the part of `self` around `slot` without the range `other`.
    fn without(self, other: Room, slot: usize) -> Room {
        // A hook above the other range must not grow down into the other range.
        let low = if slot >= other.end() { self.low.max(other.end().saturating_add(NEEDED)) } else { self.low };
        let end = if slot < other.low { self.end().min(other.low) } else { self.end() };
        if other.has(slot) { Room::default() } else { Room::between(low, end) }
    }
}

/// A thread's knowledge of stacks, and the thread's own stack for recording.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stacks {
    /// Where the thread's hooks may record.
    pub known: Room,
    /// Numbers of the regions of stacks without room.
    narrow: [usize; REGIONS],
    /// A stack of the collector for this thread; null until the thread needs a stack.
    own: *mut u8,
    /// Whether a hook is recording on the stack `own`.
    is_used: bool,
}

/// A stack of the collector without a thread.
static SPARE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Forgets the known stacks of the calling thread. To be called when the program sets another
/// alternate stack: the known extent may be wrong from then on.
pub fn forget() {
    // SAFETY: the word points to the state of the calling thread, or is null.
    if let Some(thread) = unsafe { thread_state().as_mut() } {
        thread.room.known = Room::default();
        thread.room.narrow = [0; REGIONS];
    }
}

/// Unmaps the spare stack.
///
/// # Safety
/// No thread runs on the spare stack.
pub unsafe fn release() {
    let spare = SPARE.swap(ptr::null_mut(), Ordering::AcqRel);
    if !spare.is_null() {
        // SAFETY: the caller guarantees that no thread runs on the stack.
        unsafe { sys::unmap(spare, OWN_BYTES) };
    }
}

impl Stacks {
    /// Unmaps the thread's own stack.
    ///
    /// # Safety
    /// No thread runs on the stack.
    pub unsafe fn unmap(&mut self) {
        if !self.own.is_null() {
            // SAFETY: the caller guarantees that no thread runs on the stack.
            unsafe { sys::unmap(self.own, OWN_BYTES) };
            self.own = ptr::null_mut();
        }
    }
}

/// Runs `work` for a hook entered at `slot`: on the present stack where there is room, otherwise on
/// a stack of the collector. Returns false without running `work` when neither is available.
///
/// The function itself uses little of the present stack.
pub fn with_room<F: FnOnce()>(slot: usize, work: F) -> bool {
    if is_roomy(slot) {
        work();
        return true;
    }
    extern "C" fn run<F: FnOnce()>(work: *mut u8) {
        // SAFETY: `with_room` passes a pointer to an `Option<F>` on the frame of `with_room`, alive
        // during the call.
        if let Some(work) = unsafe { &mut *work.cast::<Option<F>>() }.take() {
            work();
        }
    }
    let Some((stack, is_threads)) = take() else { return false };
    let mut work = Some(work);
    run_on(stack, slot, run::<F>, (&raw mut work).cast());
    give_back(stack, is_threads);
    true
}

/// Returns whether `address` lies on the collector's stack that the thread is running on.
pub fn is_on_own_stack(address: usize) -> bool {
    let own = tls::own_stack();
    own != 0 && address.wrapping_sub(own) < OWN_BYTES
}

/// Runs `function` on a stack of the collector, for a hook entered at `slot`.
///
/// The kernel starts a signal handler for the alternate stack at the end of the alternate stack,
/// unless the stack pointer shows the thread to be on the alternate stack already. A hook of such a
/// handler moves the stack pointer away, and the next signal would overwrite the handler's frames.
/// Signals are therefore held back meanwhile.
fn run_on(stack: *mut u8, slot: usize, function: extern "C" fn(*mut u8), argument: *mut u8) {
    let held_back = sys::is_on_signal_stack(slot).then(sys::hold_signals_back);
    let outer = tls::own_stack();
    tls::set_own_stack(stack.addr());
    // SAFETY: `stack` is unused and `OWN_BYTES` long, a multiple of 16. `function` takes
    // `argument`.
    unsafe { calls::call_on(stack.add(OWN_BYTES), function, argument) };
    tls::set_own_stack(outer);
    if let Some(mask) = held_back {
        sys::let_signals_come(mask);
    }
}

/// Maps a stack. The lowest page is a guard page without write access.
fn map_stack() -> Option<*mut u8> {
    let stack = process::map_own(OWN_BYTES)?;
    // SAFETY: the memory is fresh, and nothing uses any of the memory yet. When the system refuses
    // the protection, the stack has no guard page.
    unsafe { sys::protect(stack.addr(), PAGE, sys::PROT_NONE) };
    Some(stack)
}

/// Takes a stack of the collector. Returns the stack, and whether the stack belongs to the thread.
fn take() -> Option<(*mut u8, bool)> {
    // SAFETY: the word points to the state of the calling thread, or is null.
    if let Some(thread) = unsafe { thread_state().as_mut() }
        && !thread.room.own.is_null()
        && !thread.room.is_used
    {
        thread.room.is_used = true;
        return Some((thread.room.own, true));
    }
    let spare = SPARE.swap(ptr::null_mut(), Ordering::AcqRel);
    if spare.is_null() { Some((map_stack()?, false)) } else { Some((spare, false)) }
}

fn give_back(stack: *mut u8, is_threads: bool) {
    // SAFETY: the word points to the state of the calling thread, or is null.
    if let Some(thread) = unsafe { thread_state().as_mut() } {
        if is_threads {
            thread.room.is_used = false;
            return;
        }
        if thread.room.own.is_null() {
            thread.room.own = stack;
            return;
        }
    }
    let before = SPARE.swap(stack, Ordering::AcqRel);
    if !before.is_null() {
        // SAFETY: `before` was the spare stack, taken out by the swap, so no thread uses the stack.
        unsafe { process::unmap_own(before, OWN_BYTES) };
    }
}

/// Returns whether a hook entered at `slot` may record on the present stack, and remembers the
/// answer.
fn is_roomy(slot: usize) -> bool {
    if is_on_own_stack(slot) {
        return true;
    }
    // SAFETY: the word points to the state of the calling thread, or is null.
    let Some(thread) = (unsafe { thread_state().as_mut() }) else { return find(slot, Room::default()).has(slot) };
    let stacks = &mut thread.room;
    if stacks.known.has(slot) {
        return true;
    }
    let region = slot >> REGION_BITS;
    if stacks.narrow[region % REGIONS] == region {
        return false;
    }
    let found = find(slot, stacks.known);
    if found.has(slot) {
        stacks.known = found;
    } else {
        stacks.narrow[region % REGIONS] = region;
    }
    found.has(slot)
}

/// Finds the part of the stack at `slot` on which hooks may record. `known` is the part found
/// before.
fn find(slot: usize, known: Room) -> Room {
    let room = match of_first_thread() {
        first if first.has(slot) => first,
        _ => of_other_thread(slot, known),
    };
    match alternate() {
        Some(alternate) if room.bytes > 0 => room.without(alternate, slot),
        _ => room,
    }
}

/// Returns the stack of the first thread, which the kernel lets grow.
fn of_first_thread() -> Room {
    const AT_RANDOM: c_ulong = 25;
    unsafe extern "C" {
        fn getauxval(kind: c_ulong) -> c_ulong;
    }
    // SAFETY: `getauxval` takes any number. The kernel has put the bytes of `AT_RANDOM` above the
    // stack of the first thread.
    let end = usize::try_from(unsafe { getauxval(AT_RANDOM) }).unwrap_or(0);
    let most = sys::stack_limit().min(MOST_OF_FIRST);
    Room::between(end.saturating_sub(most).saturating_add(NEEDED), end)
}

/// Returns the stack made by the C library for a thread other than the first. The C library keeps
/// the data of the thread at the end of the stack. The result covers all pages from there down to
/// the page of the hook, and some pages below.
fn of_other_thread(slot: usize, known: Room) -> Room {
    let end = thread_words::thread_pointer();
    if slot >= end || end - slot > MOST_OF_OTHER {
        return Room::default();
    }
    // The known part reaches to the end of the stack already.
    let known_from = if known.end() == end { known.low } else { end };
    let page = slot & !(PAGE - 1);
    let mut above = (page..known_from).step_by(PAGE);
    if !above.all(sys::is_readable) {
        return Room::default();
    }
    let below = (1..=PAGES_AHEAD).map(|n| page.saturating_sub(n * PAGE)).take_while(|&page| sys::is_readable(page));
    let lowest = below.last().unwrap_or(page);
    Room::between(lowest + NEEDED, end)
}

fn alternate() -> Option<Room> {
    sys::signal_stack().map(|(low, bytes)| Room { low, bytes })
}

impl Thread {
    /// Returns the knowledge of stacks for the next thread that takes the state over.
    pub(super) fn room_of_next(&self) -> Stacks {
        Stacks { known: Room::default(), narrow: [0; REGIONS], own: self.room.own, is_used: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alternate_stack_inside_of_a_stack_is_left_out() {
        let all = Room::between(100_000, 200_000);
        let alternate = Room::between(150_000, 156_000);
        assert_eq!(all.without(alternate, 152_000).bytes, 0);
        let above = all.without(alternate, 180_000);
        assert_eq!((above.low, above.end()), (156_000 + NEEDED, 200_000));
        let below = all.without(alternate, 120_000);
        assert_eq!((below.low, below.end()), (100_000, 150_000));
    }

    #[test]
    fn the_stacks_of_threads_have_room() {
        let here = super::super::stack_pointer();
        assert!(find(here, Room::default()).has(here), "a test's thread");
        let heap = std::vec![0u8; 8192];
        assert!(!find(heap.as_ptr().addr() + 4096, Room::default()).has(heap.as_ptr().addr() + 4096), "no stack");
    }

    #[test]
    fn work_is_done_on_a_stack_of_ours() {
        let heap = std::vec![0u8; 8192];
        let mut place = 0;
        assert!(with_room(heap.as_ptr().addr() + 4096, || place = super::super::stack_pointer()));
        let here = super::super::stack_pointer();
        assert!(place.abs_diff(here) > PAGE && !find(place, Room::default()).has(place));
    }
}
