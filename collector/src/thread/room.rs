//! Where a hook finds room on the stack for what it records.
//!
//! A walk needs some kilobytes of stack, which a handler on an alternate stack, or a coroutine, may not have left. So a hook
//! records where it stands only on a stack that is known to be large: the first thread's, or one that the C library has made
//! for a thread. Anywhere else it goes over to a stack of the collector's own for that time, and takes some hundred bytes of
//! the program's.
//!
//! ```text
//! slot in [`Room`]: record here                     (two comparisons)
//! else [`with_room`]: find the stack's extent ──> it is a thread's: remember it, record here
//!                                             ──> it is any other: record on a stack of ours
//! ```
//!
//! What a program gives a thread as its stack (`pthread_attr_setstack`) is taken for one that the C library has made: where less
//! than what a walk needs is left there, and readable memory lies below, the walk uses that memory.

use super::Thread;
use super::thread_state;
use crate::platform::{sys, tls};
use crate::process;
use core::arch::naked_asm;
use core::ffi::c_ulong;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

const PAGE: usize = 4096;
/// What recording may take of a stack.
const NEEDED: usize = 8 << 10;
/// Bytes of a stack of the collector's own. A signal handler of the program's may come to run on it.
const OWN_BYTES: usize = 256 << 10;
/// How far the first thread's stack is sure to reach, at most.
const MOST_OF_FIRST: usize = 8 << 20;
/// How far from its end the stack of another thread is looked at.
const MOST_OF_OTHER: usize = 1 << 20;
/// How many pages below the stack pointer are looked at.
const PAGES_AHEAD: usize = 16;
/// Addresses that differ below this bit are taken for the same stack, where that is none with room.
const REGION_BITS: u32 = 14;
/// How many such stacks are remembered: a thread may go from one coroutine to another.
const REGIONS: usize = 8;

/// The part of a thread's stack that hooks may record on: `low..low + bytes`. All zeros are none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Room {
    low: usize,
    bytes: usize,
}

impl Room {
    /// Whether a hook that was entered at `slot` may record where it stands.
    #[inline(always)]
    pub fn has(&self, slot: usize) -> bool {
        slot.wrapping_sub(self.low) < self.bytes
    }

    fn between(low: usize, end: usize) -> Room {
        Room { low, bytes: end.saturating_sub(low) }
    }

    fn end(&self) -> usize {
        self.low + self.bytes
    }

    /// The part that does not overlap `other` and in which `slot` lies.
    fn without(self, other: Room, slot: usize) -> Room {
        // A hook that stands above the other range must not come down into it.
        let low = if slot >= other.end() { self.low.max(other.end().saturating_add(NEEDED)) } else { self.low };
        let end = if slot < other.low { self.end().min(other.low) } else { self.end() };
        if other.has(slot) { Room::default() } else { Room::between(low, end) }
    }
}

/// What a thread keeps of stacks.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stacks {
    /// Where the thread's hooks may record.
    pub known: Room,
    /// Regions of stacks without room, by their numbers.
    narrow: [usize; REGIONS],
    /// A stack of ours; null before the thread needed one.
    own: *mut u8,
    /// Whether something is recorded on it.
    is_used: bool,
}

/// A stack of ours that no thread has.
static SPARE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// The program has another alternate stack: what is known of the calling thread's stack may not be true any more.
pub fn forget() {
    // SAFETY: the word points to this thread's state.
    if let Some(thread) = unsafe { thread_state().as_mut() } {
        thread.room.known = Room::default();
        thread.room.narrow = [0; REGIONS];
    }
}

/// Gives the stack back that no thread has.
///
/// # Safety
/// Nobody runs on it.
pub unsafe fn release() {
    let spare = SPARE.swap(ptr::null_mut(), Ordering::AcqRel);
    if !spare.is_null() {
        // SAFETY: the caller's promise.
        unsafe { sys::unmap(spare, OWN_BYTES) };
    }
}

impl Stacks {
    /// Gives the thread's own one back.
    ///
    /// # Safety
    /// Nobody runs on it.
    pub unsafe fn unmap(&mut self) {
        if !self.own.is_null() {
            // SAFETY: the caller's promise.
            unsafe { sys::unmap(self.own, OWN_BYTES) };
            self.own = ptr::null_mut();
        }
    }
}

/// Runs `work` for a hook that was entered at `slot`: on this stack if there is room, else on one of ours. False where there
/// is neither.
///
/// Little of the stack is used in here.
pub fn with_room<F: FnOnce()>(slot: usize, work: F) -> bool {
    if is_roomy(slot) {
        work();
        return true;
    }
    extern "C" fn run<F: FnOnce()>(work: *mut u8) {
        // SAFETY: `with_room` passes its own work.
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

/// Whether what runs at this stack address runs on the stack of ours that the thread is on.
pub fn is_on_own_stack(address: usize) -> bool {
    let own = tls::own_stack();
    own != 0 && address.wrapping_sub(own) < OWN_BYTES
}

/// Runs `function` on a stack of ours, for a hook that was entered at `slot`.
///
/// A signal handler that is to run on an alternate stack begins at its end, unless the thread is on it already, as the kernel
/// sees by the stack pointer. So while a hook of such a handler is on a stack of ours, no signal may come.
fn run_on(stack: *mut u8, slot: usize, function: extern "C" fn(*mut u8), argument: *mut u8) {
    let held_back = sys::is_on_signal_stack(slot).then(sys::hold_signals_back);
    let outer = tls::own_stack();
    tls::set_own_stack(stack.addr());
    // SAFETY: the top of a stack that nobody else uses; the function takes the argument.
    unsafe { call_on(stack.add(OWN_BYTES), function, argument) };
    tls::set_own_stack(outer);
    if let Some(mask) = held_back {
        sys::let_signals_come(mask);
    }
}

/// Maps a stack, below whose end nothing can be written.
fn map_stack() -> Option<*mut u8> {
    let stack = process::map_own(OWN_BYTES)?;
    // SAFETY: fresh memory, of which nothing is used yet. Where the system refuses, the stack has no such end.
    unsafe { sys::protect(stack.addr(), PAGE, sys::PROT_NONE) };
    Some(stack)
}

/// A stack of ours, and whether it is the thread's.
fn take() -> Option<(*mut u8, bool)> {
    // SAFETY: the word points to this thread's state.
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
    // SAFETY: as above.
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
        // SAFETY: it was nobody's.
        unsafe { process::unmap_own(before, OWN_BYTES) };
    }
}

/// Whether a hook that was entered at `slot` may record where it stands; remembers what it finds.
fn is_roomy(slot: usize) -> bool {
    if is_on_own_stack(slot) {
        return true;
    }
    // SAFETY: the word points to this thread's state.
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

/// The part of the stack at `slot` that hooks may record on; `known` is what was found before.
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

/// The first thread's, which the kernel lets grow.
fn of_first_thread() -> Room {
    const AT_RANDOM: c_ulong = 25;
    unsafe extern "C" {
        fn getauxval(kind: c_ulong) -> c_ulong;
    }
    // SAFETY: takes any number. The kernel has put these bytes above the first thread's stack.
    let end = usize::try_from(unsafe { getauxval(AT_RANDOM) }).unwrap_or(0);
    let most = sys::stack_limit().min(MOST_OF_FIRST);
    Room::between(end.saturating_sub(most).saturating_add(NEEDED), end)
}

/// The stack that the C library has made for another thread, at whose end it keeps what belongs to the thread: all pages from
/// there down to the hook's, and some below.
fn of_other_thread(slot: usize, known: Room) -> Room {
    let end = thread_pointer();
    if slot >= end || end - slot > MOST_OF_OTHER {
        return Room::default();
    }
    // What is known reaches to the end already.
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

/// Where the C library keeps what belongs to the thread.
fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: the first word there is its own address.
    unsafe {
        core::arch::asm!("mov {}, qword ptr fs:[0]", out(reg) pointer, options(nostack, preserves_flags, readonly))
    };
    pointer
}

/// Calls `function` on another stack.
///
/// # Safety
/// 1. `top` is the end of a stack that nobody uses, and a multiple of 16.
/// 2. The function takes `argument`.
#[unsafe(naked)]
unsafe extern "C" fn call_on(top: *mut u8, function: extern "C" fn(*mut u8), argument: *mut u8) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "mov rsp, rdi",
        "mov rdi, rdx",
        "call rsi",
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
    )
}

impl Thread {
    /// What the state keeps of stacks for the thread that takes it over.
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
