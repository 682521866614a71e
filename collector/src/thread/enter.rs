//! Into a hook and out of it, and what can come between: first events, forks, signal handlers, jumps out of them.

use super::Thread;
use crate::process::{self, Process};
use crate::unwind::memory::Window;
use crate::{fail, sys, tls, unwind};
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::{Loss, slot_state};
use heapline_shared_format::event;
use heapline_shared_format::ring::Producer;

/// The thread's state for one hook, which was entered with its return address at `slot`; none when nothing shall be
/// recorded.
///
/// `busy` is the guard. A signal handler may come between any two instructions: before the note it finds the state
/// free and leaves it free, after the note it finds it taken.
#[inline(always)]
pub fn enter(slot: usize) -> Option<&'static mut Thread> {
    // SAFETY: the word points to this thread's state; `busy` tells whether a hook is using it.
    if let Some(thread) = unsafe { tls::thread().as_mut() }
        && !thread.ring.is_closed()
        && thread.busy == 0
    {
        thread.busy = slot;
        return Some(thread);
    }
    if process::is_quiet() {
        return None;
    }
    enter_slowly(slot)
}

/// Ends what [`enter`] began.
#[inline(always)]
pub fn leave(thread: &mut Thread) {
    thread.busy = 0;
}

/// Whether the hook entered at `noted` will never be resumed, because a signal handler jumped out of it: the hook that
/// asks was entered at the same place or nearer the root, on the same stack. A handler that will resume it runs
/// further from the root, or on a signal stack, which may lie anywhere.
pub fn was_abandoned(noted: usize, slot: usize) -> bool {
    slot >= noted && !sys::on_signal_stack()
}

/// The stack pointer, for hooks that do not know their slot.
#[inline(always)]
pub fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}

/// First events, events while tracing is off, forked children, and signal handlers that interrupted a hook.
#[cold]
#[inline(never)]
fn enter_slowly(slot: usize) -> Option<&'static mut Thread> {
    let starting = tls::starting();
    if starting != 0 {
        if !was_abandoned(starting, slot) {
            // A look-up or the start itself allocates, or a signal handler has interrupted it.
            process::get().filter(|process| process.is_traced())?.count_loss(Loss::Reentrant);
            return None;
        }
        tls::set_starting(0);
        tls::set_recovery(0);
    }
    let process = process::get_or_start(slot)?;
    if !process.is_traced() {
        return None;
    }
    let session = process.header().session.number.load(Ordering::Acquire);
    // SAFETY: the word points to this thread's state; whether a hook is using it is asked first.
    if let Some(thread) = unsafe { tls::thread().as_mut() }
        && thread.session == session
        && !thread.ring.is_closed()
    {
        if !was_abandoned(thread.busy, slot) {
            return thread.side(process, slot);
        }
        tls::set_recovery(0);
        if thread.recover(process) {
            thread.busy = slot;
            return Some(thread);
        }
    }
    start_thread(process, slot, false)
}

/// Gives the calling thread a slot, a ring and a state, taken for the hook entered at `slot`.
#[expect(clippy::mut_from_ref, reason = "the state is found through a slot that only this thread has")]
fn start_thread(process: &'static Process, slot: usize, side: bool) -> Option<&'static mut Thread> {
    tls::set_starting(slot);
    let started = fail::guard(|| {
        fail::point(fail::Site::Thread);
        claim(process, side)
    });
    // SAFETY: a state that was claimed for this thread just now.
    let thread = started.flatten().map(|thread| unsafe { &mut *thread });
    if let Some(thread) = thread {
        thread.busy = slot;
        if !side {
            tls::set_thread(thread);
        }
        tls::set_starting(0);
        let name = sys::thread_name();
        thread.publish_plain(|stamp| event::thread(stamp, name));
        return Some(thread);
    }
    tls::set_starting(0);
    None
}

fn claim(process: &'static Process, side: bool) -> Option<*mut Thread> {
    let header = process.header();
    let epoch = header.session.epoch.load(Ordering::Acquire);
    let session = header.session.number.load(Ordering::Relaxed);
    let arena = process.arena();
    let (index, segment) = take_pending(process, epoch)?;
    let slot = arena.slot(index)?;
    let give_up = || {
        tls::set_pending(0);
        arena.free_slots().push(index);
        arena.free_segments().push(segment);
        None
    };
    let nframe = header.session.nframe.load(Ordering::Relaxed).clamp(1, unwind::MAX_DEPTH) as usize;
    let Some(state) = process.state_for_slot(index, nframe) else {
        process.count_loss(Loss::Memory);
        return give_up();
    };
    // From here the slot is in flight, so that a session that begins meanwhile leaves it alone.
    slot.in_flight.store(1, Ordering::Relaxed);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    if header.session.epoch.load(Ordering::Acquire) != epoch {
        slot.in_flight.store(0, Ordering::Release);
        tls::set_pending(0);
        return None;
    }
    // SAFETY: the arena is never unmapped; slot and segment came from the free lists.
    let ring = unsafe { Producer::open(arena, index, segment) }?;
    slot.tid.store(sys::gettid(), Ordering::Relaxed);
    slot.image.store(process.image(), Ordering::Relaxed);
    slot.session.store(session, Ordering::Relaxed);
    slot.side.store(u32::from(side), Ordering::Relaxed);
    header.target.slots_high.fetch_max(index + 1, Ordering::Relaxed);
    let generation = slot.state.0.load(Ordering::Relaxed) >> 32;
    slot.state.0.store(generation << 32 | u64::from(slot_state::ACTIVE), Ordering::Release);
    slot.in_flight.store(0, Ordering::Release);
    // SAFETY: the state belongs to the slot, which is ours now.
    unsafe { (*state).begin(ring, index, process, epoch, session) };
    tls::set_pending(0);
    Some(state)
}

/// A slot and a segment. What a start has taken that a signal handler left for good is taken up by the next one, so
/// that nothing leaks and a storm of such handlers cannot hold the thread up for ever.
fn take_pending(process: &'static Process, epoch: u32) -> Option<(u32, u32)> {
    let arena = process.arena();
    if tls::pending_epoch() != u64::from(epoch) {
        tls::set_pending(0);
        tls::set_pending_epoch(u64::from(epoch));
    }
    if tls::pending() == 0 {
        let slot = process.take(&arena.free_slots(), epoch, Loss::Slots)?;
        tls::set_pending(u64::from(slot) + 1);
    }
    if tls::pending() >> 32 == 0 {
        let segment = process.take(&arena.free_segments(), epoch, Loss::Ended)?;
        tls::set_pending(tls::pending() | (u64::from(segment) + 1) << 32);
    }
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    let (slot, segment) = (tls::pending() as u32 - 1, (tls::pending() >> 32) as u32 - 1);
    Some((slot, segment))
}

impl Thread {
    /// Makes the state whole again after a hook that was left for good in the middle.
    fn recover(&mut self, process: &'static Process) -> bool {
        // SAFETY: the ring is open on the process's arena.
        let recovered = unsafe {
            self.ring.settle();
            self.ring.recover(process.arena())
        };
        self.kept.recover();
        self.stacks.clear();
        self.window = Window::default();
        // The last id may have been defined without being noted.
        self.next_stack = self.next_stack.wrapping_add(1);
        recovered
    }

    /// The state for a signal handler that interrupted a hook.
    #[expect(clippy::mut_from_ref, reason = "only this thread knows its side state")]
    fn side(&mut self, process: &'static Process, slot: usize) -> Option<&'static mut Thread> {
        // SAFETY: only this thread knows its side state.
        if let Some(side) = unsafe { self.side.as_mut() }
            && !side.ring.is_closed()
        {
            if side.busy == 0 {
                side.busy = slot;
                return Some(side);
            }
            if !was_abandoned(side.busy, slot) {
                process.count_loss(Loss::Reentrant);
                return None;
            }
            if side.recover(process) {
                side.busy = slot;
                return Some(side);
            }
        }
        let side = start_thread(process, slot, true)?;
        self.side = side;
        Some(side)
    }
}
