//! Into a hook and out of it, and what can come between: first events, forks, signal handlers, jumps out of them.

use super::Thread;
use crate::process::{self, Process};
use crate::{fail, sys, tls, unwind};
use core::ptr;
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::{Loss, slot_state};
use heapline_shared_format::event;
use heapline_shared_format::ring::Producer;

/// The thread's state for one hook, or none when nothing shall be recorded.
///
/// A signal handler may come between any two instructions here. `active` is taken first and given back first, so that
/// a handler finds either a free state or none; null without a note in `busy` means that a hook is just beginning.
#[inline(always)]
pub fn enter() -> Option<&'static mut Thread> {
    let sp = stack_pointer();
    // SAFETY: `active` points to this thread's state, and is null inside hooks, so nobody else uses it now.
    if let Some(thread) = unsafe { tls::active().as_mut() }
        && !thread.ring.is_closed()
    {
        tls::set_active(ptr::null_mut());
        thread.busy = sp;
        return Some(thread);
    }
    enter_slowly(sp)
}

/// Ends what [`enter`] began.
#[inline(always)]
pub fn leave(thread: &mut Thread) {
    let this: *mut Thread = thread;
    if tls::own() == this {
        tls::set_active(this);
    }
    thread.busy = 0;
}

/// Whether what noted this stack pointer will never be resumed, because a signal handler jumped out of it: the hook
/// that asks runs at the same place or nearer the root, on the same stack. A handler that will resume it runs
/// further from the root, or on a signal stack, which may lie anywhere.
fn was_abandoned(noted: usize, sp: usize) -> bool {
    sp >= noted && !sys::on_signal_stack()
}

/// The stack pointer, about.
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
fn enter_slowly(sp: usize) -> Option<&'static mut Thread> {
    let starting = tls::starting();
    if starting != 0 {
        if !was_abandoned(starting, sp) {
            // A look-up or the start itself allocates, or a signal handler has interrupted it.
            process::get().filter(|process| process.is_traced())?.count_loss(Loss::Reentrant);
            return None;
        }
        tls::set_starting(0);
        tls::set_recovery(0);
    }
    let process = process::get_or_start(sp)?;
    if !process.is_traced() {
        return None;
    }
    let session = process.header().session.number.load(Ordering::Acquire);
    // SAFETY: `own` points to this thread's state; whether a hook is using it is asked first.
    let own = unsafe { tls::own().as_mut() };
    match own {
        Some(own) if own.session == session && !own.ring.is_closed() => {
            if own.busy == 0 || !was_abandoned(own.busy, sp) {
                return own.side(process, sp);
            }
            // Half-done state is not mended but left: the aggregator sees a second slot of this thread and lets the
            // first one go.
            // SAFETY: the ring is open.
            unsafe { own.ring.settle() };
            tls::set_recovery(0);
        }
        _ => {}
    }
    start_thread(process, sp, false)
}

/// Gives the calling thread a slot, a ring and a state, taken for the hook at `sp`.
#[expect(clippy::mut_from_ref, reason = "the state is found through a slot that only this thread has")]
fn start_thread(process: &'static Process, sp: usize, side: bool) -> Option<&'static mut Thread> {
    tls::set_starting(sp);
    let started = fail::guard(|| {
        fail::point(fail::Site::Thread);
        claim(process, side)
    });
    // SAFETY: a state that was claimed for this thread just now.
    let thread = started.flatten().map(|thread| unsafe { &mut *thread });
    if let Some(thread) = &thread
        && !side
    {
        tls::set_active(ptr::null_mut());
        tls::set_own(&raw const **thread as *mut Thread);
    }
    tls::set_starting(0);
    let thread = thread?;
    thread.busy = sp;
    let name = sys::thread_name();
    thread.publish_plain(|stamp| event::thread(stamp, name));
    Some(thread)
}

fn claim(process: &'static Process, side: bool) -> Option<*mut Thread> {
    let header = process.header();
    let epoch = header.session.epoch.load(Ordering::Acquire);
    let session = header.session.number.load(Ordering::Relaxed);
    let arena = process.arena();
    let index = process.take(&arena.free_slots(), epoch, Loss::Slots)?;
    let slot = arena.slot(index)?;
    let give_up = || {
        arena.free_slots().push(index);
        None
    };
    let Some(segment) = process.take(&arena.free_segments(), epoch, Loss::Slots) else { return give_up() };
    let nframe = header.session.nframe.load(Ordering::Relaxed).clamp(1, unwind::MAX_DEPTH) as usize;
    let Some(state) = process.state_for_slot(index, nframe) else {
        arena.free_segments().push(segment);
        process.count_loss(Loss::Memory);
        return give_up();
    };
    // From here the slot is in flight, so that a session that begins meanwhile leaves it alone.
    slot.in_flight.store(1, Ordering::Relaxed);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    if header.session.epoch.load(Ordering::Acquire) != epoch {
        slot.in_flight.store(0, Ordering::Release);
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
    unsafe { (*state).begin(ring, process, epoch, session) };
    Some(state)
}

impl Thread {
    /// The state for a signal handler that interrupted a hook.
    #[expect(clippy::mut_from_ref, reason = "only this thread knows its side state")]
    fn side(&mut self, process: &'static Process, sp: usize) -> Option<&'static mut Thread> {
        // SAFETY: only this thread knows its side state.
        match unsafe { self.side.as_mut() } {
            None => {
                let side = start_thread(process, sp, true)?;
                self.side = side;
                Some(side)
            }
            Some(side) if side.ring.is_closed() || side.busy != 0 && !was_abandoned(side.busy, sp) => {
                process.count_loss(Loss::Reentrant);
                None
            }
            Some(side) => {
                side.busy = sp;
                Some(side)
            }
        }
    }
}
