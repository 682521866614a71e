//! The process's state: one page run, wiped by fork.
//!
//! A forked child finds the pointer, but zeros behind the pointer, whichever way the child was
//! forked. Where children are followed, the child begins anew with its first event; otherwise the
//! child stays untraced. A vfork child shares everything with the parent. Blocks allocated by the
//! vfork child are part of the parent's heap, and are recorded as the parent's.

pub mod known;

use crate::platform::environment::ArenaHandle;
use crate::platform::sys;
use crate::rules::Table;
use crate::unwind::generated;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use heapline_shared_format::arena::{Arena, FreeList, Header, Loss, MAX_SLOTS, SEGMENT_BYTES, end_cause, state};
use known::Known;

/// `FUTEX_OWNER_DIED`: the kernel sets this bit in the owner word when the aggregator's thread
/// ends.
const OWNER_DIED: u32 = 0x4000_0000;
/// Nanoseconds without progress of the aggregator before the process stops tracing.
const STALL_NANOSECONDS: u64 = 1_000_000_000;
/// Nanoseconds that a thread beyond the last slot waits for the aggregator to find a dead thread.
/// For the same number of nanoseconds afterwards, later threads do not wait.
const SLOT_WAIT_NANOSECONDS: u64 = 100_000_000;
const LONGEST_PATH: usize = 4096;

/// State of the process, wiped by fork. All zeros are the state of a forked child.
#[repr(C)]
pub struct Process {
    pub(crate) is_running: AtomicU32,
    /// Whether a forked child has begun. A child begins once.
    pub(crate) has_begun: AtomicBool,
    /// Whether the program was begun by fork, not by exec.
    pub(crate) is_forked: bool,
    pub(crate) pid: u32,
    pub(crate) image: u32,
    pub(crate) fd: i32,
    pub(crate) handle: ArenaHandle,
    pub(crate) arena: MaybeUninit<Arena>,
    pub(crate) rules: MaybeUninit<Table>,
    /// Session for which the rule table was last cleared.
    pub(crate) rules_session: AtomicU32,
    segments_taken: AtomicU32,
    /// Time (monotonic nanoseconds) until which no thread waits for a slot.
    no_slots_until: AtomicU64,
    /// States of the threads that own the slots.
    states: [AtomicPtr<()>; MAX_SLOTS as usize],
    modules: Known,
}

pub(crate) static PROCESS: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());
/// The header of the arena, set as soon as there is an arena: the end must be reported even before
/// the start is over. In a forked child before the child's start, the header is the parent's,
/// mapped by both.
pub(crate) static HEADER: AtomicPtr<Header> = AtomicPtr::new(ptr::null_mut());
pub(crate) static ARENA_BYTES: AtomicUsize = AtomicUsize::new(0);
/// Path of the collector itself, needed by children too.
pub(crate) static OWN_PATH: OwnPath = OwnPath { bytes: AtomicUsize::new(0), text: UnsafeCell::new([0; LONGEST_PATH]) };
pub(crate) static VERIFIES: AtomicBool = AtomicBool::new(false);
/// `Session::state` of the arena, or one of the two words below. A hook reads only this word while
/// nothing is traced.
#[cfg_attr(feature = "embedded", unsafe(export_name = "heapline_embedded_state"))]
pub(crate) static STATE: AtomicPtr<AtomicU32> = AtomicPtr::new((&raw const NOT_STARTED).cast_mut());
static NOT_STARTED: AtomicU32 = AtomicU32::new(state::TRACING);
pub(crate) static NEVER: AtomicU32 = AtomicU32::new(state::IDLE);
/// Number of the last session of an arena given back. A session number remembered from before was
/// used in none of the sessions of the next arena.
pub(crate) static LAST_SESSION: AtomicU32 = AtomicU32::new(0);
/// Whether the program has restricted its system calls: a child making other system calls might be
/// killed.
pub(crate) static IS_SANDBOXED: AtomicBool = AtomicBool::new(false);

pub(crate) struct OwnPath {
    pub(crate) bytes: AtomicUsize,
    pub(crate) text: UnsafeCell<[u8; LONGEST_PATH]>,
}

// SAFETY: the text is written while the process starts, before the length (Release) shows that
// there is text to read.
unsafe impl Sync for OwnPath {}

/// Returns the process state, or `None` without a state (not started, switched off, failed) or
/// after a fork.
#[inline]
pub fn get() -> Option<&'static Process> {
    // SAFETY: the state is published once and unmapped only without users; zeros are a valid value.
    let process = unsafe { PROCESS.load(Ordering::Acquire).as_ref() }?;
    (process.is_running.load(Ordering::Relaxed) == 1).then_some(process)
}

/// Returns the present mode of tracing ([`mod@state`]).
#[inline(always)]
pub fn mode() -> u32 {
    // SAFETY: the word is a static, or a word of the arena, mapped while hooks run.
    unsafe { (*STATE.load(Ordering::Relaxed)).load(Ordering::Relaxed) }
}

/// Returns whether a thread not recording already has nothing to do.
#[inline(always)]
pub fn is_quiet() -> bool {
    mode() == state::IDLE
}

/// Returns whether samples are recorded, and not all events.
#[inline(always)]
pub fn is_sampling() -> bool {
    mode() == state::SAMPLING
}

/// Returns the word behind [`is_quiet`]; `None` before the start.
pub fn state() -> Option<&'static AtomicU32> {
    let state = STATE.load(Ordering::Relaxed);
    // SAFETY: the word is a static, or a word of the arena, mapped while hooks run.
    (!ptr::eq(state, &raw const NOT_STARTED)).then(|| unsafe { &*state })
}

/// Makes [`is_quiet`] read another collector's state. Without another collector, [`is_quiet`] is
/// true from then on.
pub fn follow(state: Option<&'static AtomicU32>) {
    STATE.store(ptr::from_ref(state.unwrap_or(&NEVER)).cast_mut(), Ordering::Relaxed);
}

/// Returns whether this process is a forked child. (A vfork child finds the parent's state.)
pub fn is_forked() -> bool {
    // SAFETY: the state is published once and unmapped only without users; zeros are a valid value.
    let process = unsafe { PROCESS.load(Ordering::Acquire).as_ref() };
    process.is_some_and(|process| process.is_forked || process.is_running.load(Ordering::Relaxed) == 0)
}

/// Counts a child that will not be traced, and cannot report this itself.
pub fn count_untold() {
    // SAFETY: `HEADER` is null, or points to the header of a mapped arena.
    if let Some(header) = unsafe { HEADER.load(Ordering::Acquire).as_ref() } {
        header.tree.untold.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns whether the program has restricted its own system calls.
pub fn is_sandboxed() -> bool {
    IS_SANDBOXED.load(Ordering::Relaxed)
}

/// Returns the path of the collector itself, as given to the loader.
pub fn own_path() -> &'static [u8] {
    // SAFETY: `bytes` (Acquire) covers only text written before, and a zero byte follows.
    unsafe { &(&*OWN_PATH.text.get())[..OWN_PATH.bytes.load(Ordering::Acquire)] }
}

/// Sets the path of the collector in a running process, where each attach may bring another path. A
/// path longer than the buffer counts as no path.
pub fn set_own_path(path: &[u8]) {
    if own_path() == path {
        return;
    }
    OWN_PATH.bytes.store(0, Ordering::Release);
    // SAFETY: the length is 0, so readers see no text. A thread that has read the earlier length
    // and is copying the path at this moment, for a program about to begin, copies bytes of both
    // paths. The loader then finds no such file, and the new program is not traced.
    let text = unsafe { &mut *OWN_PATH.text.get() };
    text.fill(0);
    // The last byte stays zero.
    if let Some(place) = text[..LONGEST_PATH - 1].get_mut(..path.len()) {
        place.copy_from_slice(path);
        OWN_PATH.bytes.store(path.len(), Ordering::Release);
    }
}

/// Ends tracing from inside the target. `cause` is an `end_cause`.
pub fn end(cause: u32) {
    // SAFETY: `HEADER` is null, or points to the header of a mapped arena.
    let Some(header) = (unsafe { HEADER.load(Ordering::Acquire).as_ref() }) else { return };
    let _ = header.target.end_cause.compare_exchange(0, cause, Ordering::AcqRel, Ordering::Relaxed);
    // Idle from here on: the program runs at the untraced speed again.
    header.session.state.store(state::IDLE, Ordering::Release);
    header.session.epoch.fetch_add(1, Ordering::Release);
}

/// Ends tracing if `epoch` is still the present epoch. The aggregator may have ended the session in
/// good order, or begun another session.
fn end_epoch(epoch: u32, cause: u32) {
    // SAFETY: `HEADER` is null, or points to the header of a mapped arena.
    let Some(header) = (unsafe { HEADER.load(Ordering::Acquire).as_ref() }) else { return };
    let next = epoch.wrapping_add(1);
    if header.session.epoch.compare_exchange(epoch, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        end(cause);
    }
}

/// Counts places in a program started with the collector, where calls of allocators could not be
/// led to the collector, or not in time.
pub fn count_unled(foreign_places: u64, unseen_starts: u64) {
    let target = match get() {
        Some(process) if foreign_places + unseen_starts > 0 => &process.header().target,
        _ => return,
    };
    let counted = |count| u32::try_from(count).unwrap_or(u32::MAX);
    target.foreign_places.fetch_add(counted(foreign_places), Ordering::Relaxed);
    target.unseen_starts.fetch_add(counted(unseen_starts), Ordering::Relaxed);
}

/// Counts an event not recorded because neither the program's stack nor the system had room.
pub fn count_unrecorded() {
    if let Some(process) = get().filter(|process| process.is_traced()) {
        process.count_loss(Loss::Memory);
    }
}

/// Counts a full table of stacks, forgotten by a thread.
pub fn count_forgotten_stacks() {
    if let Some(process) = get() {
        process.header().target.stacks_forgotten.fetch_add(1, Ordering::Relaxed);
    }
}

/// Maps fresh zeroed memory for the collector, and counts the bytes as the collector's own.
pub fn map_own(bytes: usize) -> Option<*mut u8> {
    let memory = sys::map(bytes)?;
    if let Some(process) = get() {
        process.header().target.own_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    Some(memory)
}

/// Returns whether the collector may take `bytes` more. The ceiling of the rings' memory
/// (`--max-target-memory`) is the ceiling of the collector's tables too.
pub fn may_own(bytes: usize) -> bool {
    get().is_some_and(|process| {
        let ceiling = u64::from(process.arena().geometry().segments) * SEGMENT_BYTES as u64;
        let own = process.header().target.own_bytes.load(Ordering::Relaxed);
        own.saturating_add(bytes as u64) <= ceiling
    })
}

/// Unmaps memory from [`map_own`].
///
/// # Safety
/// No thread uses the memory any more.
pub unsafe fn unmap_own(memory: *mut u8, bytes: usize) {
    // SAFETY: the caller guarantees that no thread uses the memory any more.
    unsafe { sys::unmap(memory, bytes) };
    if let Some(process) = get() {
        process.header().target.own_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

/// Reason for an empty answer of a free list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Untaken {
    /// The epoch has ended.
    Renewed,
    /// The aggregator is gone.
    NoOwner,
    /// The aggregator gives nothing back any more.
    Stalled,
    /// All slots are taken, and none becomes free.
    NoSlot,
}

impl Process {
    /// Returns the arena.
    #[inline]
    pub fn arena(&self) -> &Arena {
        // SAFETY: `arena` was set before the state was published.
        unsafe { self.arena.assume_init_ref() }
    }

    /// Returns the header of the arena.
    #[inline]
    pub fn header(&self) -> &Header {
        self.arena().header()
    }

    /// Returns the rule table of the process.
    pub fn rules(&self) -> Table {
        // SAFETY: `rules` was set before the state was published.
        unsafe { self.rules.assume_init() }
    }

    /// Returns the rule table of the process, emptied once at the start of each session: modules
    /// are announced when a rule is missed.
    pub fn rules_for_session(&self, session: u32) -> Table {
        if self.rules_session.swap(session, Ordering::AcqRel) != session {
            generated::forget(0..usize::MAX);
            self.rules().clear();
        }
        self.rules()
    }

    /// Returns whether every stack is to be compared with a fresh walk (`HEAPLINE_VERIFY=1`).
    pub fn verifies(&self) -> bool {
        VERIFIES.load(Ordering::Relaxed)
    }

    /// Returns the announced objects.
    pub fn modules(&self) -> &Known {
        &self.modules
    }

    /// Returns the place of the state of the thread that owns `slot`.
    pub fn state_of_slot(&self, slot: u32) -> Option<&AtomicPtr<()>> {
        self.states.get(slot as usize)
    }

    /// Returns the number of the present program image of the process, counted by exec from 1.
    pub fn image(&self) -> u32 {
        self.image
    }

    /// Returns whether this is the started process itself, and not a vfork child.
    pub fn is_self(&self) -> bool {
        sys::getpid() == self.pid
    }

    /// Returns the descriptor of the arena, if the descriptor is still open and refers to the
    /// arena.
    pub fn arena_fd(&self) -> Option<ArenaHandle> {
        let file = sys::file_id(self.fd)?;
        (file.device == self.handle.device && file.inode == self.handle.inode).then_some(self.handle)
    }

    /// Returns whether events are to be recorded.
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

    /// Returns whether `epoch` is still the present epoch.
    #[inline]
    pub fn is_epoch(&self, epoch: u32) -> bool {
        self.header().session.epoch.load(Ordering::Acquire) == epoch
    }

    /// Takes an index from a free list, and waits for the aggregator when the list is empty.
    /// Returns `None` when tracing of the process or the epoch has ended meanwhile. A loss is
    /// counted when the end did not come from the aggregator.
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
        // When the aggregator ends the session, an event still without a stamp comes after the end,
        // and is no loss.
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

    /// Returns whether an aggregator is there, and answers.
    pub fn is_answered(&self) -> bool {
        self.is_traced() && !self.owner_is_gone()
    }

    fn owner_is_gone(&self) -> bool {
        let owner = self.header().session.owner.load(Ordering::Acquire);
        owner == 0 || owner & OWNER_DIED != 0
    }

    /// Returns true once in a quarter of the segments: the aggregator is to poll now, however long
    /// the aggregator meant to sleep.
    fn is_quarter_taken(&self) -> bool {
        let quarter = (self.arena().geometry().segments / 4).max(1);
        self.segments_taken.fetch_add(1, Ordering::Relaxed) % quarter == quarter - 1
    }

    /// Wakes the aggregator to poll the rings now.
    pub fn wake_aggregator(&self) {
        let progress = &self.header().progress;
        if progress.sleeping.load(Ordering::Acquire) != 0 {
            progress.wake.fetch_add(1, Ordering::AcqRel);
            sys::futex_wake(&progress.wake);
        }
    }
}
