//! Into a hook and out of it, and what can come between: first events, forks, signal handlers, jumps out of them.

use super::thread_state;
use super::{Thread, room};
use crate::platform::{sys, tls};
use crate::process::Process;
use crate::start;
use crate::unwind::memory::Window;
use crate::{doors, fail, process, unwind};
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::{FreeList, Loss, Slot, slot_state};
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

/// The thread's state for a hook that was entered at `slot`, where nothing has to be done first and the stack has room.
#[inline(always)]
pub fn enter_at_once(slot: usize) -> Option<&'static mut Thread> {
    // SAFETY: the word points to this thread's state; `busy` tells whether a hook is using it.
    let thread = unsafe { thread_state().as_mut() }?;
    let is_ready = !thread.ring.is_closed() && thread.busy == 0 && thread.room.known.has(slot);
    is_ready.then(|| {
        thread.busy = slot;
        thread
    })
}

/// Ends what [`enter`] began.
#[inline(always)]
pub fn leave(thread: &mut Thread) {
    thread.busy = 0;
}

/// Bit of `busy`: the thread is inside the allocator itself, called by the hook that was entered there.
const IN_ALLOCATOR: usize = 1;

/// Marks the calling thread, whose hook was entered at `slot` and is about to call an allocator: what that calls of its own
/// by hooked names is part of the call. False where the thread records nothing, or is marked already.
pub fn enter_allocator(slot: usize) -> bool {
    if process::is_quiet() || tls::starting() != 0 {
        return false;
    }
    // SAFETY: the word points to this thread's state; `busy` tells whether a hook is using it.
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

/// Ends what [`enter_allocator`] began.
pub fn leave_allocator() {
    // SAFETY: as in `enter_allocator`: the mark is this hook's.
    if let Some(thread) = unsafe { thread_state().as_mut() } {
        thread.busy = 0;
    }
}

/// Runs a call of the allocator between the two.
pub fn in_allocator<R>(call: impl FnOnce() -> R) -> R {
    let is_marked = enter_allocator(stack_pointer() & !IN_ALLOCATOR);
    let result = call();
    if is_marked {
        leave_allocator();
    }
    result
}

/// Records what an allocator does with the process's address space, which is a layer of its own: the mark is taken off meanwhile.
pub fn out_of_allocator<R>(record: impl FnOnce() -> R) -> R {
    // SAFETY: the word points to this thread's state; a marked one is used by no hook.
    let Some(thread) = (unsafe { thread_state().as_mut() }).filter(|thread| thread.busy & IN_ALLOCATOR != 0) else {
        return record();
    };
    let mark = core::mem::take(&mut thread.busy);
    let result = record();
    // SAFETY: as above; the record may have given the thread another state.
    if let Some(thread) = unsafe { thread_state().as_mut() } {
        thread.busy = mark;
    }
    result
}

/// Whether a hook entered at `slot` was called by an allocator that is at work on this thread.
fn is_allocators_own(busy: usize, slot: usize) -> bool {
    // A mark that an exception has left is further from the root than what is called now.
    let is_inside = busy & IN_ALLOCATOR != 0 && slot < busy;
    // SAFETY: a hook is entered with its return address there.
    is_inside && doors::is_allocators(unsafe { (slot as *const usize).read() })
}

/// Whether the hook entered at `noted` will never be resumed, because a signal handler jumped out of it: the hook that
/// asks was entered at the same place or nearer the root, on the same stack. A handler that will resume it runs
/// further from the root, or on a signal stack, which may lie anywhere, as may a stack of the collector's own on which it has
/// interrupted the hook.
pub fn was_abandoned(noted: usize, slot: usize) -> bool {
    slot >= noted & !IN_ALLOCATOR && !room::is_on_own_stack(slot) && !sys::is_on_signal_stack(slot)
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
    let process = start::get_or_start(slot)?;
    if !process.is_traced() {
        return None;
    }
    let session = process.header().session.number.load(Ordering::Acquire);
    // SAFETY: the word points to this thread's state; whether a hook is using it is asked first.
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
    // SAFETY: as above.
    start_thread(process, slot, false, unsafe { thread_state().as_ref() })
}

/// Gives the calling thread a slot, a ring and a state, taken for the hook entered at `slot`. `before` is what it had in an
/// earlier session.
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
    // SAFETY: a state that was claimed for this thread just now.
    let thread = started.flatten().map(|thread| unsafe { &mut *thread });
    if let Some(thread) = thread {
        thread.busy = slot;
        if !side {
            tls::set_thread(core::ptr::from_mut(thread).cast());
        }
        tls::set_starting(0);
        let name = sys::thread_name();
        thread.publish_plain(|stamp| event::thread(stamp, name));
        return Some(thread);
    }
    tls::set_starting(0);
    None
}

/// What a thread had in an earlier session.
#[derive(Clone, Copy)]
struct Before {
    slot: u32,
    /// 0 when it had nothing.
    session: u32,
    side: *mut Thread,
}

/// What became of an attempt to take a slot.
enum Claim {
    Done(*mut Thread),
    /// The epoch has ended, and nothing was touched.
    Stale,
    /// There is none; the loss is counted.
    Lost,
}

fn claim(process: &'static Process, side: bool, before: Option<Before>) -> Claim {
    let header = process.header();
    let epoch = header.session.epoch.load(Ordering::Acquire);
    if !process.is_traced() {
        // The epoch may be the one in which the next session fills its lists.
        return Claim::Stale;
    }
    let session = header.session.number.load(Ordering::Relaxed);
    let arena = process.arena();
    let own = before.filter(|before| before.session != 0 && before.session != session);
    let (index, segment) = match take_pending(process, (epoch, session), own) {
        Ok(taken) => taken,
        Err(failed) => return failed,
    };
    let Some(slot) = arena.slot(index) else { return Claim::Lost };
    // From here the slot is in flight, so that a session that begins meanwhile waits.
    slot.in_flight.store(1, Ordering::Relaxed);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    if header.session.epoch.load(Ordering::Acquire) != epoch {
        // What is pending is of use when only an object was unloaded.
        slot.in_flight.store(0, Ordering::Release);
        return Claim::Stale;
    }
    let settle = || {
        tls::set_pending(0);
        slot.in_flight.store(0, Ordering::Release);
    };
    let nframe = header.session.nframe.load(Ordering::Relaxed).clamp(1, unwind::MAX_DEPTH) as usize;
    let state = state_for_slot(process, index, nframe);
    // SAFETY: the arena is never unmapped; slot and segment came from the free lists.
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
    // Before the slot is anybody's to see: from then on a session that ends leaves the state to this thread.
    let own_side = own.filter(|own| own.slot == index).map_or(core::ptr::null_mut(), |own| own.side);
    // SAFETY: the state belongs to the slot, which is ours now.
    unsafe { (*state).begin(ring, index, process, (epoch, session), own_side) };
    let generation = slot.state.0.load(Ordering::Relaxed) >> 32;
    slot.state.0.store(generation << 32 | u64::from(slot_state::ACTIVE), Ordering::Release);
    settle();
    Claim::Done(state)
}

/// A slot and a segment. What a start has taken and not used, because an object was unloaded or a signal handler has left
/// it for good, is taken up by the next one, so that nothing leaks and a storm of such handlers cannot hold the thread up
/// for ever.
fn take_pending(
    process: &'static Process,
    (epoch, session): (u32, u32),
    own: Option<Before>,
) -> Result<(u32, u32), Claim> {
    let arena = process.arena();
    if tls::pending_session() != u64::from(session) {
        if let Some((slot, _)) = pending() {
            // Its segment went with the session.
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

/// What is pending: a slot, and its segment.
fn pending() -> Option<(u32, Option<u32>)> {
    let word = tls::pending();
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    let (slot, segment) = (word as u32, (word >> 32) as u32);
    Some((slot.checked_sub(1)?, segment.checked_sub(1)))
}

/// Makes a slot this thread's that is in that state in this epoch. It may be another's by now.
fn takes(process: &'static Process, index: u32, epoch: u32, kind: u32) -> bool {
    let Some(slot) = process.arena().slot(index) else { return false };
    let seen = slot.state.0.load(Ordering::Acquire);
    // A session that begins after this look changes the slot's generation, so the claim fails.
    Slot::kind(seen) == kind && process.is_epoch(epoch) && slot.claim(seen)
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
        // SAFETY: as above.
        let side = start_thread(process, slot, true, unsafe { self.side.as_ref() })?;
        self.side = side;
        Some(side)
    }
}

/// The state of the thread that owns a slot, with room for `nframe` frames.
fn state_for_slot(process: &Process, slot: u32, nframe: usize) -> Option<*mut Thread> {
    let place = process.state_of_slot(slot)?;
    let old: *mut Thread = place.load(Ordering::Acquire).cast();
    // SAFETY: a state belongs to its slot, and the slot is the caller's.
    let old_nframe = unsafe { old.as_ref() }.map(Thread::nframe);
    if old_nframe == Some(nframe) {
        return Some(old);
    }
    let bytes = Thread::bytes(nframe);
    let memory = sys::map_wiped_on_fork(bytes)?;
    process.header().target.own_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    // SAFETY: fresh zeroed memory of that size, unmapped only when another takes its place.
    let new = unsafe { Thread::lay_out(memory, nframe) };
    place.store(new.cast(), Ordering::Release);
    Some(new)
}
