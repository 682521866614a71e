//! The process's state: one page run of its own, wiped by fork.
//!
//! A forked child finds the pointer but zeros behind it, whichever way it was forked. It begins
//! anew with its first event where children are followed, and stays untraced otherwise. A vfork
//! child shares everything with its parent: what it allocates is the parent's heap, and is recorded
//! as the parent's.

pub mod known;

use crate::platform::environment::ArenaHandle;
use crate::platform::sys;
use crate::rules::Table;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use heapline_shared_format::arena::{Arena, FreeList, Header, Loss, MAX_SLOTS, end_cause, state};
use known::Known;

/// `FUTEX_OWNER_DIED`: the kernel sets it in the owner word when the aggregator's thread ends.
const OWNER_DIED: u32 = 0x4000_0000;
/// How long the aggregator may make no progress before the process stops tracing, in nanoseconds.
const STALL_NANOSECONDS: u64 = 1_000_000_000;
/// How long a thread beyond the last slot waits for the aggregator to find a dead one, and how long
/// later ones do not.
const SLOT_WAIT_NANOSECONDS: u64 = 100_000_000;
const LONGEST_PATH: usize = 4096;

/// See the module. All zeros are a forked child's.
#[repr(C)]
pub struct Process {
    pub(crate) is_running: AtomicU32,
    /// A forked child begins, once.
    pub(crate) has_begun: AtomicBool,
    /// The program was begun by fork, not by exec.
    pub(crate) is_forked: bool,
    pub(crate) pid: u32,
    pub(crate) image: u32,
    pub(crate) fd: i32,
    pub(crate) handle: ArenaHandle,
    pub(crate) arena: MaybeUninit<Arena>,
    pub(crate) rules: MaybeUninit<Table>,
    /// The session for which the rule table was last cleared.
    pub(crate) rules_session: AtomicU32,
    segments_taken: AtomicU32,
    /// Until when (monotonic nanoseconds) no thread waits for a slot.
    no_slots_until: AtomicU64,
    /// States of the threads that own the slots.
    states: [AtomicPtr<()>; MAX_SLOTS as usize],
    modules: Known,
}

pub(crate) static PROCESS: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());
/// The arena's header, from the moment that there is one: an end must be told even before the start
/// is over. In a forked child that has not begun it is the parent's, which both have mapped.
pub(crate) static HEADER: AtomicPtr<Header> = AtomicPtr::new(ptr::null_mut());
pub(crate) static ARENA_BYTES: AtomicUsize = AtomicUsize::new(0);
/// The collector's own path, which children need too.
pub(crate) static OWN_PATH: OwnPath = OwnPath { bytes: AtomicUsize::new(0), text: UnsafeCell::new([0; LONGEST_PATH]) };
pub(crate) static VERIFIES: AtomicBool = AtomicBool::new(false);
/// `Session::state` of the arena, or one of the two below: all that a hook looks at while nothing
/// is traced.
#[cfg_attr(feature = "embedded", unsafe(export_name = "heapline_embedded_state"))]
pub(crate) static STATE: AtomicPtr<AtomicU32> = AtomicPtr::new((&raw const NOT_STARTED).cast_mut());
static NOT_STARTED: AtomicU32 = AtomicU32::new(state::TRACING);
pub(crate) static NEVER: AtomicU32 = AtomicU32::new(state::IDLE);
/// Number of the last session of an arena that was given back: what is remembered by a session's
/// number was told in none of the next arena's.
pub(crate) static LAST_SESSION: AtomicU32 = AtomicU32::new(0);
/// The program has restricted what system calls it may make: a child that made others might be
/// killed.
pub(crate) static IS_SANDBOXED: AtomicBool = AtomicBool::new(false);

pub(crate) struct OwnPath {
    pub(crate) bytes: AtomicUsize,
    pub(crate) text: UnsafeCell<[u8; LONGEST_PATH]>,
}

// SAFETY: written while the process starts, before its length (Release) says that there is
// something to read.
unsafe impl Sync for OwnPath {}

/// The process's state, unless it has none (not started, switched off, failed) or was forked.
#[inline]
pub fn get() -> Option<&'static Process> {
    // SAFETY: published once, never unmapped; zeros are a valid value.
    let process = unsafe { PROCESS.load(Ordering::Acquire).as_ref() }?;
    (process.is_running.load(Ordering::Relaxed) == 1).then_some(process)
}

/// What is to be done ([`mod@state`]).
#[inline(always)]
pub fn mode() -> u32 {
    // SAFETY: a static, or a word of the arena, which is never unmapped.
    unsafe { (*STATE.load(Ordering::Relaxed)).load(Ordering::Relaxed) }
}

/// Whether there is nothing to do for a thread that is not recording already.
#[inline(always)]
pub fn is_quiet() -> bool {
    mode() == state::IDLE
}

/// Whether samples are recorded, and not everything.
#[inline(always)]
pub fn is_sampling() -> bool {
    mode() == state::SAMPLING
}

/// The word behind [`is_quiet`]; none before the start.
pub fn state() -> Option<&'static AtomicU32> {
    let state = STATE.load(Ordering::Relaxed);
    // SAFETY: a static, or a word of the arena, which is never unmapped.
    (!ptr::eq(state, &raw const NOT_STARTED)).then(|| unsafe { &*state })
}

/// Makes [`is_quiet`] look at another collector's state, or for good where there is none.
pub fn follow(state: Option<&'static AtomicU32>) {
    STATE.store(ptr::from_ref(state.unwrap_or(&NEVER)).cast_mut(), Ordering::Relaxed);
}

/// Whether this is a forked child. (A vfork child finds its parent's state.)
pub fn is_forked() -> bool {
    // SAFETY: as in `get`.
    let process = unsafe { PROCESS.load(Ordering::Acquire).as_ref() };
    process.is_some_and(|process| process.is_forked || process.is_running.load(Ordering::Relaxed) == 0)
}

/// A child will not be traced, and cannot say so itself.
pub fn count_untold() {
    // SAFETY: as above.
    if let Some(header) = unsafe { HEADER.load(Ordering::Acquire).as_ref() } {
        header.tree.untold.fetch_add(1, Ordering::Relaxed);
    }
}

/// The collector's own path, as the loader was given it.
pub fn own_path() -> &'static [u8] {
    // SAFETY: see `OwnPath`; a zero byte follows.
    unsafe { &(&*OWN_PATH.text.get())[..OWN_PATH.bytes.load(Ordering::Acquire)] }
}

/// Sets it in a process that runs already, where it may be another at each attach. A longer one
/// than there is room for is none.
pub fn set_own_path(path: &[u8]) {
    if own_path() == path {
        return;
    }
    OWN_PATH.bytes.store(0, Ordering::Release);
    // SAFETY: see `OwnPath`. A thread that copies the earlier one in this moment, for a program
    // that it begins, copies bytes of both; the loader then finds no such file, and that program is
    // not traced.
    let text = unsafe { &mut *OWN_PATH.text.get() };
    text.fill(0);
    // The last byte stays zero.
    if let Some(place) = text[..LONGEST_PATH - 1].get_mut(..path.len()) {
        place.copy_from_slice(path);
        OWN_PATH.bytes.store(path.len(), Ordering::Release);
    }
}

/// Ends tracing from inside the target, for an `end_cause`.
pub fn end(cause: u32) {
    // SAFETY: an arena's header, never unmapped.
    let Some(header) = (unsafe { HEADER.load(Ordering::Acquire).as_ref() }) else { return };
    let _ = header.target.end_cause.compare_exchange(0, cause, Ordering::AcqRel, Ordering::Relaxed);
    // Back to the untraced speed.
    header.session.state.store(state::IDLE, Ordering::Release);
    header.session.epoch.fetch_add(1, Ordering::Release);
}

/// Likewise, if the epoch is still this one: the aggregator may have ended the session in good
/// order, or begun another.
fn end_epoch(epoch: u32, cause: u32) {
    // SAFETY: as above.
    let Some(header) = (unsafe { HEADER.load(Ordering::Acquire).as_ref() }) else { return };
    let next = epoch.wrapping_add(1);
    if header.session.epoch.compare_exchange(epoch, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        end(cause);
    }
}

/// Calls of allocators in a program that was started with the collector could not be led to it, or
/// not in time.
pub fn count_unled(foreign_places: u64, unseen_starts: u64) {
    let target = match get() {
        Some(process) if foreign_places + unseen_starts > 0 => &process.header().target,
        _ => return,
    };
    let counted = |count| u32::try_from(count).unwrap_or(u32::MAX);
    target.foreign_places.fetch_add(counted(foreign_places), Ordering::Relaxed);
    target.unseen_starts.fetch_add(counted(unseen_starts), Ordering::Relaxed);
}

/// An event was not recorded: neither the program's stack nor the system had room for that.
pub fn count_unrecorded() {
    if let Some(process) = get().filter(|process| process.is_traced()) {
        process.count_loss(Loss::Memory);
    }
}

/// A thread's table of stacks was full.
pub fn count_forgotten_stacks() {
    if let Some(process) = get() {
        process.header().target.stacks_forgotten.fetch_add(1, Ordering::Relaxed);
    }
}

/// Fresh zeroed memory for the collector, counted as its own.
pub fn map_own(bytes: usize) -> Option<*mut u8> {
    let memory = sys::map(bytes)?;
    if let Some(process) = get() {
        process.header().target.own_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    Some(memory)
}

/// Gives back what [`map_own`] gave.
///
/// # Safety
/// Nobody uses the memory any more.
pub unsafe fn unmap_own(memory: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { sys::unmap(memory, bytes) };
    if let Some(process) = get() {
        process.header().target.own_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

/// Why there is nothing for a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Untaken {
    /// The epoch has ended.
    Renewed,
    /// The aggregator is gone.
    NoOwner,
    /// It gives nothing back any more.
    Stalled,
    /// All slots are taken, and stay so.
    NoSlot,
}

impl Process {
    /// The arena.
    #[inline]
    pub fn arena(&self) -> &Arena {
        // SAFETY: set before the state was published.
        unsafe { self.arena.assume_init_ref() }
    }

    /// The arena's header.
    #[inline]
    pub fn header(&self) -> &Header {
        self.arena().header()
    }

    /// The process's rule table.
    pub fn rules(&self) -> Table {
        // SAFETY: set before the state was published.
        unsafe { self.rules.assume_init() }
    }

    /// Likewise, emptied once at the start of each session: modules are announced when a rule is
    /// missed.
    pub fn rules_for_session(&self, session: u32) -> Table {
        if self.rules_session.swap(session, Ordering::AcqRel) != session {
            self.rules().clear();
        }
        self.rules()
    }

    /// Whether every stack is to be compared with a fresh walk.
    pub fn verifies(&self) -> bool {
        VERIFIES.load(Ordering::Relaxed)
    }

    /// The objects that were announced.
    pub fn modules(&self) -> &Known {
        &self.modules
    }

    /// The place of the state of the thread that owns a slot.
    pub fn state_of_slot(&self, slot: u32) -> Option<&AtomicPtr<()>> {
        self.states.get(slot as usize)
    }

    /// Which program image of the process this is, counted by exec from 1.
    pub fn image(&self) -> u32 {
        self.image
    }

    /// Whether this is the process that was started, and not a vfork child of it.
    pub fn is_self(&self) -> bool {
        sys::getpid() == self.pid
    }

    /// The arena's descriptor, if it is still open and still the arena's.
    pub fn arena_fd(&self) -> Option<ArenaHandle> {
        let file = sys::file_id(self.fd)?;
        (file.device == self.handle.device && file.inode == self.handle.inode).then_some(self.handle)
    }

    /// Whether events are to be recorded.
    #[inline]
    pub fn is_traced(&self) -> bool {
        let header = self.header();
        header.session.state.load(Ordering::Acquire) != state::IDLE
            && header.target.end_cause.load(Ordering::Relaxed) == 0
    }

    /// Counts a missing event.
    pub fn count_loss(&self, cause: Loss) {
        self.header().lost.0[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether this epoch goes on.
    #[inline]
    pub fn is_epoch(&self, epoch: u32) -> bool {
        self.header().session.epoch.load(Ordering::Acquire) == epoch
    }

    /// Takes from a free list; waits for the aggregator when it is empty. None when tracing of the
    /// process or the epoch has ended meanwhile; a loss is counted when it was not the aggregator
    /// that ended it.
    pub fn take(&self, list: &FreeList<'_>, epoch: u32, loss: Loss) -> Option<u32> {
        let untaken = match self.take_or_wait(list, epoch, loss) {
            Ok(index) => return Some(index),
            Err(untaken) => untaken,
        };
        match untaken {
            Untaken::NoOwner => end_epoch(epoch, end_cause::ORPHANED),
            Untaken::Stalled => end_epoch(epoch, end_cause::STALLED),
            Untaken::NoSlot | Untaken::Renewed => {}
        }
        // An event that has no stamp when the aggregator ends the session comes after its end.
        if untaken == Untaken::NoSlot || self.header().target.end_cause.load(Ordering::Acquire) != 0 {
            self.count_loss(loss);
        }
        None
    }

    fn take_or_wait(&self, list: &FreeList<'_>, epoch: u32, loss: Loss) -> Result<u32, Untaken> {
        if self.owner_is_gone() {
            return Err(Untaken::NoOwner);
        }
        let is_slot = loss == Loss::Slots;
        if let Some(index) = list.pop() {
            if !is_slot && self.is_quarter_taken() {
                self.wake_aggregator();
            }
            return Ok(index);
        }
        if is_slot && sys::monotonic() < self.no_slots_until.load(Ordering::Relaxed) {
            return Err(Untaken::NoSlot);
        }
        let progress = &self.header().progress;
        progress.waits.fetch_add(1, Ordering::Relaxed);
        progress.waiters.fetch_add(1, Ordering::AcqRel);
        let taken = self.wait_for(list, epoch, is_slot);
        progress.waiters.fetch_sub(1, Ordering::AcqRel);
        if taken == Err(Untaken::NoSlot) {
            self.no_slots_until.store(sys::monotonic() + SLOT_WAIT_NANOSECONDS, Ordering::Relaxed);
        }
        taken
    }

    fn wait_for(&self, list: &FreeList<'_>, epoch: u32, waits_for_slot: bool) -> Result<u32, Untaken> {
        const NAP_NANOSECONDS: u64 = 10_000_000;
        let progress = &self.header().progress;
        let started = sys::monotonic();
        let mut last_progress = started;
        loop {
            let seen = progress.given_back.load(Ordering::Acquire);
            self.wake_aggregator();
            if let Some(index) = list.pop() {
                return Ok(index);
            }
            sys::futex_wait(&progress.given_back, seen, NAP_NANOSECONDS);
            if !self.is_epoch(epoch) {
                return Err(Untaken::Renewed);
            }
            if self.owner_is_gone() {
                return Err(Untaken::NoOwner);
            }
            let now = sys::monotonic();
            if progress.given_back.load(Ordering::Acquire) != seen {
                last_progress = now;
            } else if now.saturating_sub(last_progress) > STALL_NANOSECONDS {
                return Err(Untaken::Stalled);
            }
            if waits_for_slot && now.saturating_sub(started) > SLOT_WAIT_NANOSECONDS {
                return Err(Untaken::NoSlot);
            }
        }
    }

    /// Whether an aggregator is there that answers.
    pub fn is_answered(&self) -> bool {
        self.is_traced() && !self.owner_is_gone()
    }

    fn owner_is_gone(&self) -> bool {
        let owner = self.header().session.owner.load(Ordering::Acquire);
        owner == 0 || owner & OWNER_DIED != 0
    }

    /// True once in a quarter of the pool: the aggregator shall look, however long it meant to
    /// sleep.
    fn is_quarter_taken(&self) -> bool {
        let quarter = (self.arena().geometry().segments / 4).max(1);
        self.segments_taken.fetch_add(1, Ordering::Relaxed) % quarter == quarter - 1
    }

    /// Lets the aggregator look at the rings now.
    pub fn wake_aggregator(&self) {
        let progress = &self.header().progress;
        if progress.sleeping.load(Ordering::Acquire) != 0 {
            progress.wake.fetch_add(1, Ordering::AcqRel);
            sys::futex_wake(&progress.wake);
        }
    }
}
