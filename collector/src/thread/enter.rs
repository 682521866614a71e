//! Entry into a hook and exit from a hook, and the interruptions between: first events, forks,
//! signal handlers, and jumps out of signal handlers.

use super::thread_state;
use super::{Moment, Thread, name, room};
use crate::arch::stack::pointer as stack_pointer;
use crate::platform::{sys, tls};
use crate::process::Process;
use crate::start;
use crate::unwind::memory::Window;
use crate::{doors, fail, offered, process, unwind};
use core::ffi::c_void;
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::{FreeList, Loss, Slot, slot_state};
use heapline_shared_format::ring::Producer;

/// Returns the thread's state for one hook, entered with the return address at `slot`. Returns
/// `None` when the hook is to record nothing.
///
/// `busy` guards the state. A signal handler may run between any two instructions:
///
/// - before the store to `busy` the handler finds the state free, and leaves the state free;
/// - after the store the handler finds the state taken.
#[inline(always)]
pub fn enter(slot: usize) -> Option<&'static mut Thread> {
    // SAFETY: the word points to the state of the calling thread; `busy` shows whether a hook uses
    // the state.
    if let Some(thread) = unsafe { thread_state().as_mut() }
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

/// Returns the thread's state for a hook entered at `slot`, where no preparation is needed and the
/// stack has room.
#[inline(always)]
pub fn enter_at_once(slot: usize) -> Option<&'static mut Thread> {
    // SAFETY: the word points to the state of the calling thread; `busy` shows whether a hook uses
    // the state.
    let thread = unsafe { thread_state().as_mut() }?;
    let is_ready = !thread.ring.is_closed() && thread.busy == 0 && thread.room.known.has(slot);
    is_ready.then(|| {
        thread.busy = slot;
        thread
    })
}

/// Ends the use of the state begun by [`enter`].
#[inline(always)]
pub fn leave(thread: &mut Thread) {
    thread.busy = 0;
}

/// Bit of `busy`: the thread is inside the allocator, called by the hook entered at the rest of
/// `busy`.
const IN_ALLOCATOR: usize = 1;

/// Marks the calling thread as inside an allocator. The hook entered at `slot` is about to call the
/// allocator, and hooked functions called by the allocator are part of the same call. Returns false
/// where the thread records nothing, or is marked already.
pub fn enter_allocator(slot: usize) -> bool {
    if process::is_quiet() || tls::starting() != 0 {
        return false;
    }
    // SAFETY: the word points to the state of the calling thread; `busy` shows whether a hook uses
    // the state.
    if unsafe { thread_state().as_ref() }.is_some_and(|thread| thread.busy != 0 && !was_abandoned(thread.busy, slot)) {
        return false;
    }
    if let Some(thread) = enter_at_once(slot) {
        thread.busy = slot | IN_ALLOCATOR;
        return true;
    }
    let mut is_marked = false;
    super::with_room(slot, || {
        if let Some(thread) = enter(slot) {
            thread.busy = slot | IN_ALLOCATOR;
            is_marked = true;
        }
    });
    is_marked
}

/// Takes off the mark set by [`enter_allocator`].
pub fn leave_allocator() {
    // SAFETY: the word points to the state of the calling thread, and the mark in `busy` belongs to
    // the present hook.
    if let Some(thread) = unsafe { thread_state().as_mut() } {
        thread.busy = 0;
    }
}

/// Runs a call of the allocator between [`enter_allocator`] and [`leave_allocator`].
pub fn in_allocator<R>(call: impl FnOnce() -> R) -> R {
    let is_marked = enter_allocator(stack_pointer() & !IN_ALLOCATOR);
    let result = call();
    if is_marked {
        leave_allocator();
    }
    result
}

/// Records an allocator's change of the address space, which is a layer apart from blocks. The mark
/// of [`enter_allocator`] is taken off meanwhile.
pub fn out_of_allocator<R>(record: impl FnOnce() -> R) -> R {
    // SAFETY: the word points to the state of the calling thread, and no hook uses a marked state.
    let Some(thread) = (unsafe { thread_state().as_mut() }).filter(|thread| thread.busy & IN_ALLOCATOR != 0) else {
        return record();
    };
    let mark = core::mem::take(&mut thread.busy);
    let result = record();
    // SAFETY: the word points to the state of the calling thread, read again because the record may
    // have given the thread another state. No hook uses the state.
    if let Some(thread) = unsafe { thread_state().as_mut() } {
        thread.busy = mark;
    }
    result
}

/// Returns whether a hook entered at `slot` was called by the allocator at work on this thread.
fn is_allocators_own(busy: usize, slot: usize) -> bool {
    // A mark left behind by an exception lies further from the root than the slot of a later call.
    let is_inside = busy & IN_ALLOCATOR != 0 && slot < busy;
    // SAFETY: the return address of the hook lies at `slot`, as the entry of every hook notes.
    is_inside && doors::is_allocators(unsafe { (slot as *const usize).read() })
}

/// Returns whether the hook entered at `noted` will never be resumed, because a signal handler
/// jumped out of the hook. `slot` is the place where the asking hook was entered.
///
/// - Abandoned: the asking hook was entered at the same place or nearer the root, on the same
///   stack.
/// - Not abandoned: a handler that will resume the hook runs further from the root.
/// - Not abandoned: a handler on a signal stack, or on a stack of the collector where the handler
///   interrupted the hook. Such a stack may lie anywhere.
pub fn was_abandoned(noted: usize, slot: usize) -> bool {
    slot >= noted & !IN_ALLOCATOR && !room::is_on_own_stack(slot) && !sys::is_on_signal_stack(slot)
}

/// Enters a hook on the slow path: first events, events while tracing is off, forked children, and
/// signal handlers that interrupted a hook.
#[cold]
#[inline(never)]
fn enter_slowly(slot: usize) -> Option<&'static mut Thread> {
    let starting = tls::starting();
    if starting != 0 {
        if !was_abandoned(starting, slot) {
            // Either a symbol look-up or the start of the collector allocates, or a signal handler
            // has interrupted the start.
            process::get().filter(|process| process.is_traced())?.count_loss(Loss::Reentrant);
            return None;
        }
        tls::set_starting(0);
        tls::set_recovery(0);
    }
    let process = start::get_or_start(slot)?;
    if !process.is_traced() {
        return None;
    }
    let session = process.header().session.number.load(Ordering::Acquire);
    // SAFETY: the word points to the state of the calling thread; `busy` is checked before any use.
    if let Some(thread) = unsafe { thread_state().as_mut() }
        && thread.session == session
        && !thread.ring.is_closed()
    {
        if !was_abandoned(thread.busy, slot) {
            return if is_allocators_own(thread.busy, slot) { None } else { thread.side(process, slot) };
        }
        tls::set_recovery(0);
        if thread.recover(process) {
            thread.busy = slot;
            return Some(thread);
        }
    }
    // SAFETY: the word points to the state of the calling thread, or is null.
    start_thread(process, slot, false, unsafe { thread_state().as_ref() })
}

/// Gives the calling thread a slot, a ring and a state, taken for the hook entered at `slot`.
/// `before` is the thread's state of an earlier session.
#[expect(clippy::mut_from_ref, reason = "the state is found through a slot that only this thread has")]
fn start_thread(
    process: &'static Process,
    slot: usize,
    side: bool,
    before: Option<&Thread>,
) -> Option<&'static mut Thread> {
    tls::set_starting(slot);
    let before = before.map(|thread| Before { slot: thread.slot, session: thread.session, side: thread.side });
    let started = fail::guard(|| {
        fail::point(fail::Site::Thread);
        loop {
            match claim(process, side, before) {
                Claim::Done(state) => return Some(state),
                // An object was unloaded, or the session has ended.
                Claim::Stale if process.is_traced() => {}
                Claim::Stale | Claim::Lost => return None,
            }
        }
    });
    // SAFETY: `claim` has just claimed the state for this thread.
    let thread = started.flatten().map(|thread| unsafe { &mut *thread });
    if let Some(thread) = thread {
        thread.busy = slot;
        if !side {
            tls::set_thread(core::ptr::from_mut(thread).cast());
        }
        tls::set_starting(0);
        thread.tell_name();
        if !side {
            name::watch(ended);
            offered::tell_pause(thread);
        }
        return Some(thread);
    }
    tls::set_starting(0);
    None
}

/// Called by the C library at the end of a thread. The thread sends a name given meanwhile.
extern "C" fn ended(_: *mut c_void) {
    // SAFETY: the word points to the state of the calling thread, or is null.
    if !unsafe { thread_state().as_ref() }.is_some_and(Thread::is_at_rest) {
        return;
    }
    let slot = stack_pointer();
    room::with_room(slot, || {
        if let Some(thread) = enter(slot) {
            thread.tell_name();
            leave(thread);
        }
    });
}

/// Slot, session and side state of a thread in an earlier session.
#[derive(Clone, Copy)]
struct Before {
    slot: u32,
    /// 0 without an earlier session.
    session: u32,
    side: *mut Thread,
}

/// Outcome of an attempt to take a slot.
enum Claim {
    Done(*mut Thread),
    /// The epoch has ended, and nothing was touched.
    Stale,
    /// No slot or no memory is left. The loss is counted.
    Lost,
}

fn claim(process: &'static Process, side: bool, before: Option<Before>) -> Claim {
    let header = process.header();
    let epoch = header.session.epoch.load(Ordering::Acquire);
    if !process.is_traced() {
        // The epoch may be the epoch in which the next session fills the free lists.
        return Claim::Stale;
    }
    let session = header.session.number.load(Ordering::Relaxed);
    let moment = Moment { epoch, session };
    let arena = process.arena();
    let own = before.filter(|before| before.session != 0 && before.session != session);
    let (index, segment) = match take_pending(process, moment, own) {
        Ok(taken) => taken,
        Err(failed) => return failed,
    };
    let Some(slot) = arena.slot(index) else { return Claim::Lost };
    // From here the slot is in flight, so a session that begins meanwhile waits.
    slot.in_flight.store(1, Ordering::Relaxed);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    if header.session.epoch.load(Ordering::Acquire) != epoch {
        // The pending slot and segment stay useful when only an object was unloaded.
        slot.in_flight.store(0, Ordering::Release);
        return Claim::Stale;
    }
    let settle = || {
        tls::set_pending(0);
        slot.in_flight.store(0, Ordering::Release);
    };
    let nframe = header.session.nframe.load(Ordering::Relaxed).clamp(1, unwind::MAX_DEPTH) as usize;
    let state = state_for_slot(process, index, nframe);
    // SAFETY: the arena is never unmapped, and slot and segment came from the free lists.
    let opened = state.zip(unsafe { Producer::open(arena, index, segment) });
    let Some((state, ring)) = opened else {
        process.count_loss(Loss::Memory);
        slot.unclaim();
        arena.free_slots().push(index);
        arena.free_segments().push(segment);
        settle();
        return Claim::Lost;
    };
    slot.tid.store(sys::gettid(), Ordering::Relaxed);
    slot.image.store(process.image(), Ordering::Relaxed);
    slot.session.store(session, Ordering::Relaxed);
    slot.side.store(u32::from(side), Ordering::Relaxed);
    header.target.slots_high.fetch_max(index + 1, Ordering::Relaxed);
    // The state is set up before the slot becomes visible to others. From then on a session that
    // ends leaves the state to this thread.
    let own_side = own.filter(|own| own.slot == index).map_or(core::ptr::null_mut(), |own| own.side);
    // SAFETY: the state belongs to the slot, and this thread has claimed the slot.
    unsafe { (*state).begin(ring, index, process, moment, own_side) };
    let generation = slot.state.0.load(Ordering::Relaxed) >> 32;
    slot.state.0.store(generation << 32 | u64::from(slot_state::ACTIVE), Ordering::Release);
    settle();
    Claim::Done(state)
}

/// Takes a slot and a segment, or the pending slot and segment of an earlier attempt. An attempt
/// leaves them pending when an object was unloaded, or when a signal handler jumped out of the
/// attempt. Nothing leaks, and a storm of such handlers cannot hold the thread up for ever.
fn take_pending(process: &'static Process, moment: Moment, own: Option<Before>) -> Result<(u32, u32), Claim> {
    let Moment { epoch, session } = moment;
    let arena = process.arena();
    if tls::pending_session() != u64::from(session) {
        if let Some((slot, _)) = pending() {
            // The segment of the pending slot went with the earlier session.
            arena.slot(slot).into_iter().for_each(Slot::unclaim);
        }
        tls::set_pending(0);
        tls::set_pending_session(u64::from(session));
    }
    let take = |list: &FreeList<'_>, loss| {
        process.take(list, epoch, loss).ok_or_else(|| match process.is_epoch(epoch) {
            true => Claim::Lost,
            false => Claim::Stale,
        })
    };
    if pending().is_none() {
        let held = own.map(|own| own.slot).filter(|&index| takes(process, index, epoch, slot_state::HELD));
        let slot = match held {
            Some(index) => index,
            None => {
                let index = take(&arena.free_slots(), Loss::Slots)?;
                if !takes(process, index, epoch, slot_state::FREE) {
                    return Err(Claim::Stale);
                }
                index
            }
        };
        tls::set_pending(u64::from(slot) + 1);
    }
    let (slot, segment) = pending().ok_or(Claim::Lost)?;
    if let Some(segment) = segment {
        return Ok((slot, segment));
    }
    let segment = take(&arena.free_segments(), Loss::Ended)?;
    tls::set_pending(tls::pending() | (u64::from(segment) + 1) << 32);
    Ok((slot, segment))
}

/// Returns the pending slot, and the pending segment.
fn pending() -> Option<(u32, Option<u32>)> {
    let word = tls::pending();
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    let (slot, segment) = (word as u32, (word >> 32) as u32);
    Some((slot.checked_sub(1)?, segment.checked_sub(1)))
}

/// Claims a slot for this thread, if the slot is in state `kind` in epoch `epoch`. Another thread
/// may own the slot by now.
fn takes(process: &'static Process, index: u32, epoch: u32, kind: u32) -> bool {
    let Some(slot) = process.arena().slot(index) else { return false };
    let seen = slot.state.0.load(Ordering::Acquire);
    // A session that begins after the load changes the generation of the slot, so the claim fails.
    Slot::kind(seen) == kind && process.is_epoch(epoch) && slot.claim(seen)
}

impl Thread {
    /// Repairs the state after a hook was abandoned in the middle.
    fn recover(&mut self, process: &'static Process) -> bool {
        // SAFETY: the ring is open, on the arena of `process`.
        let recovered = unsafe {
            self.ring.settle();
            self.ring.recover(process.arena())
        };
        self.kept.recover();
        self.python.recover();
        self.stacks.clear();
        self.window = Window::default();
        // The abandoned hook may have defined the last id without storing the next id.
        self.next_stack = self.next_stack.wrapping_add(1);
        recovered
    }

    /// Returns the state for a signal handler that interrupted a hook.
    #[expect(clippy::mut_from_ref, reason = "only this thread knows its side state")]
    fn side(&mut self, process: &'static Process, slot: usize) -> Option<&'static mut Thread> {
        // SAFETY: only this thread knows its side state, and the state is never unmapped.
        let side = unsafe { self.side.as_mut() };
        if let Some(side) = side
            && side.session == self.session
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
        // SAFETY: only this thread knows its side state, and the state is never unmapped.
        let side = start_thread(process, slot, true, unsafe { self.side.as_ref() })?;
        self.side = side;
        Some(side)
    }
}

/// Returns the state of the thread that owns `slot`, with room for `nframe` frames.
fn state_for_slot(process: &Process, slot: u32, nframe: usize) -> Option<*mut Thread> {
    let place = process.state_of_slot(slot)?;
    let old: *mut Thread = place.load(Ordering::Acquire).cast();
    // SAFETY: a state belongs to its slot, and the caller owns the slot.
    let old_nframe = unsafe { old.as_ref() }.map(Thread::nframe);
    if old_nframe == Some(nframe) {
        return Some(old);
    }
    let bytes = Thread::bytes(nframe);
    let memory = sys::map_wiped_on_fork(bytes)?;
    process.header().target.own_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    // SAFETY: the memory is fresh, zeroed and `bytes` long. The memory is unmapped only when
    // another state takes its place.
    let new = unsafe { Thread::lay_out(memory, nframe) };
    place.store(new.cast(), Ordering::Release);
    Some(new)
}
