//! The process's state: one page run of its own, wiped by fork.
//!
//! A forked child finds the pointer but zeros behind it, whichever way it was forked. It begins anew with its first event
//! where children are followed, and stays untraced otherwise. A vfork child shares everything with its parent: what it
//! allocates is the parent's heap, and is recorded as the parent's.

mod start;

use crate::environment::{self, ArenaHandle};
use crate::modules::Known;
use crate::thread::{self, Thread};
use crate::unwind::rules::Table;
use crate::{fail, fork, real, sampling, sys, tls};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use heapline_shared_format::arena::{Arena, FreeList, Header, Loss, MAX_SLOTS, end_cause, state};
use heapline_shared_format::tree::Way;
use start::Origin;

/// `FUTEX_OWNER_DIED`: the kernel sets it in the owner word when the aggregator's thread ends.
const OWNER_DIED: u32 = 0x4000_0000;
/// How long the aggregator may make no progress before the process stops tracing, in nanoseconds.
const STALL_NANOSECONDS: u64 = 1_000_000_000;
/// How long a thread beyond the last slot waits for the aggregator to find a dead one, and how long later ones do not.
const SLOT_WAIT_NANOSECONDS: u64 = 100_000_000;
const LONGEST_PATH: usize = 4096;

/// See the module. All zeros are a forked child's.
#[repr(C)]
pub struct Process {
    is_running: AtomicU32,
    /// A forked child begins, once.
    has_begun: AtomicBool,
    /// The program was begun by fork, not by exec.
    is_forked: bool,
    pid: u32,
    image: u32,
    fd: i32,
    handle: ArenaHandle,
    arena: MaybeUninit<Arena>,
    rules: MaybeUninit<Table>,
    /// The session for which the rule table was last cleared.
    rules_session: AtomicU32,
    segments_taken: AtomicU32,
    /// Until when (monotonic nanoseconds) no thread waits for a slot.
    no_slots_until: AtomicU64,
    states: [AtomicPtr<Thread>; MAX_SLOTS as usize],
    modules: Known,
}

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());
/// The arena's header, from the moment that there is one: an end must be told even before the start is over. In a forked
/// child that has not begun it is the parent's, which both have mapped.
static HEADER: AtomicPtr<Header> = AtomicPtr::new(ptr::null_mut());
static ARENA_BYTES: AtomicUsize = AtomicUsize::new(0);
/// The collector's own path, which children need too.
static OWN_PATH: OwnPath = OwnPath { bytes: AtomicUsize::new(0), text: UnsafeCell::new([0; LONGEST_PATH]) };
static VERIFIES: AtomicBool = AtomicBool::new(false);
/// `Session::state` of the arena, or one of the two below: all that a hook looks at while nothing is traced.
#[cfg_attr(feature = "embedded", unsafe(export_name = "heapline_embedded_state"))]
pub(crate) static STATE: AtomicPtr<AtomicU32> = AtomicPtr::new((&raw const NOT_STARTED).cast_mut());
static NOT_STARTED: AtomicU32 = AtomicU32::new(state::TRACING);
static NEVER: AtomicU32 = AtomicU32::new(state::IDLE);
static HAS_STARTED: AtomicBool = AtomicBool::new(false);
/// Number of the last session of an arena that was given back: what is remembered by a session's number was told in none of the
/// next arena's.
static LAST_SESSION: AtomicU32 = AtomicU32::new(0);
/// All was given back ([`release`]): the next attach begins anew.
static IS_RELEASED: AtomicBool = AtomicBool::new(false);
static BEFORE_START: AtomicU64 = AtomicU64::new(0);
/// The program has restricted what system calls it may make: a child that made others might be killed.
static IS_SANDBOXED: AtomicBool = AtomicBool::new(false);

struct OwnPath {
    bytes: AtomicUsize,
    text: UnsafeCell<[u8; LONGEST_PATH]>,
}

// SAFETY: written while the process starts, before its length (Release) says that there is something to read.
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

/// The way that leads children of this process to the aggregator; none while they are not followed. A forked child that has
/// not begun knows its parent's.
pub fn way_for_children() -> Option<Way> {
    let (header, fork) = match get() {
        Some(process) => (process.header(), 0),
        // SAFETY: an arena's header, mapped as long as this points to it.
        None if is_forked() => unsafe { (HEADER.load(Ordering::Acquire).as_ref()?, fork::own_number()) },
        None => return None,
    };
    start::way_from(header, fork)
}

/// A child will not be traced, and cannot say so itself.
pub fn count_untold() {
    // SAFETY: as above.
    if let Some(header) = unsafe { HEADER.load(Ordering::Acquire).as_ref() } {
        header.tree.untold.fetch_add(1, Ordering::Relaxed);
    }
}

/// The program is about to restrict its system calls. A forked child makes those that it needs before that; later ones
/// make none.
pub fn before_sandbox(slot: usize) {
    if is_forked() {
        let _ = get_or_start(slot);
    }
    IS_SANDBOXED.store(true, Ordering::Relaxed);
}

/// The collector's own path, as the loader was given it.
pub fn own_path() -> &'static [u8] {
    // SAFETY: see `OwnPath`; a zero byte follows.
    unsafe { &(&*OWN_PATH.text.get())[..OWN_PATH.bytes.load(Ordering::Acquire)] }
}

/// Sets it in a process that runs already, where it may be another at each attach. A longer one than there is room for is none.
pub fn set_own_path(path: &[u8]) {
    if own_path() == path {
        return;
    }
    OWN_PATH.bytes.store(0, Ordering::Release);
    // SAFETY: see `OwnPath`. A thread that copies the earlier one in this moment, for a program that it begins, copies bytes of
    // both; the loader then finds no such file, and that program is not traced.
    let text = unsafe { &mut *OWN_PATH.text.get() };
    text.fill(0);
    // The last byte stays zero.
    if let Some(place) = text[..LONGEST_PATH - 1].get_mut(..path.len()) {
        place.copy_from_slice(path);
        OWN_PATH.bytes.store(path.len(), Ordering::Release);
    }
}

/// Likewise; starts the collector at the first call that finds libc ready. `slot` is where the hook was entered.
pub fn get_or_start(slot: usize) -> Option<&'static Process> {
    if HAS_STARTED.load(Ordering::Acquire) {
        return get().or_else(|| begin_in_child(slot));
    }
    if !environment::is_up() || HAS_STARTED.swap(true, Ordering::AcqRel) {
        BEFORE_START.fetch_add(1, Ordering::Relaxed);
        return None;
    }
    start_from(slot, Origin::Start);
    get()
}

/// Starts the collector in a process that runs already, with room for so many bytes of records.
pub fn start_injected(pool_bytes: u64) -> Option<&'static Process> {
    let is_first = !HAS_STARTED.swap(true, Ordering::AcqRel);
    if is_first || IS_RELEASED.swap(false, Ordering::AcqRel) {
        start_from(thread::stack_pointer(), Origin::Injection { pool_bytes });
    }
    get()
}

/// Gives the arena, its descriptor and all memory back to the system. Until the next attach every hook goes straight on.
///
/// # Safety
/// 1. No other thread runs, and none stands in the collector.
/// 2. No other thread's words ([`tls`]) point to memory of the collector's.
pub unsafe fn release() {
    STATE.store((&raw const NEVER).cast_mut(), Ordering::Release);
    // SAFETY: an arena's header, which is unmapped only below.
    if let Some(header) = unsafe { HEADER.load(Ordering::Acquire).as_ref() } {
        LAST_SESSION.store(header.session.number.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    let process = PROCESS.swap(ptr::null_mut(), Ordering::AcqRel);
    let arena = HEADER.swap(ptr::null_mut(), Ordering::AcqRel);
    tls::clear();
    // SAFETY: the caller's promises: nobody uses any of this any more.
    unsafe {
        if let Some(process) = process.as_mut() {
            for place in &process.states {
                let state = place.swap(ptr::null_mut(), Ordering::Relaxed);
                if let Some(thread) = state.as_mut() {
                    let bytes = Thread::bytes(thread.nframe());
                    thread.release();
                    sys::unmap(state.cast(), bytes);
                }
            }
            process.rules().unmap();
            if process.fd >= 0 {
                sys::close(process.fd);
            }
            sys::unmap(ptr::from_mut(process).cast(), size_of::<Process>());
        }
        thread::release_room();
        sampling::blocks::release();
        if !arena.is_null() {
            sys::unmap(arena.cast(), ARENA_BYTES.load(Ordering::Relaxed));
        }
    }
    IS_RELEASED.store(true, Ordering::Release);
}

fn start_from(slot: usize, origin: Origin) {
    let errno = real::errno();
    tls::set_starting(slot);
    let started = fail::guard(|| start::start(origin)).flatten();
    tls::set_starting(0);
    let state = match started {
        Some(process) => {
            PROCESS.store(process, Ordering::Release);
            // SAFETY: initialised by `start`.
            unsafe { &raw const (*process).header().session.state }
        }
        None => &raw const NEVER,
    };
    STATE.store(state.cast_mut(), Ordering::Release);
    real::set_errno(errno);
}

/// A forked child that is followed begins with its first event; another has nothing to do from then on.
#[cold]
fn begin_in_child(slot: usize) -> Option<&'static Process> {
    let process = PROCESS.load(Ordering::Acquire);
    // SAFETY: as in `get`.
    let seen = unsafe { process.as_ref() }?;
    // A signal handler may interrupt the beginning.
    if seen.has_begun.swap(true, Ordering::AcqRel) {
        return None;
    }
    let errno = real::errno();
    tls::set_recovery(0);
    tls::set_starting(slot);
    // A failure in here is none of the parent's.
    let parent = HEADER.swap(ptr::null_mut(), Ordering::AcqRel);
    let bytes = ARENA_BYTES.load(Ordering::Relaxed);
    // SAFETY: the wiped state, which nobody uses before it runs; the parent's arena is mapped until below.
    let begun = fail::guard(|| unsafe { start::begin_in_child(process, parent.as_ref()?) }).flatten();
    tls::set_starting(0);
    let state = match begun {
        Some(()) => get().map(|process| &raw const process.header().session.state),
        None => None,
    };
    STATE.store(state.unwrap_or(&raw const NEVER).cast_mut(), Ordering::Release);
    if state.is_some() {
        // SAFETY: the child has an arena of its own, and nothing points into the parent's any more.
        unsafe { sys::unmap(parent.cast(), bytes) };
    }
    real::set_errno(errno);
    get()
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

/// Likewise, if the epoch is still this one: the aggregator may have ended the session in good order, or begun another.
fn end_epoch(epoch: u32, cause: u32) {
    // SAFETY: as above.
    let Some(header) = (unsafe { HEADER.load(Ordering::Acquire).as_ref() }) else { return };
    let next = epoch.wrapping_add(1);
    if header.session.epoch.compare_exchange(epoch, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        end(cause);
    }
}

/// Calls of allocators in a program that was started with the collector could not be led to it, or not in time.
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

    /// Likewise, emptied once at the start of each session: modules are announced when a rule is missed.
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

    /// Whether another program in the place of this one has room for the arena.
    pub fn has_room_again(&self) -> bool {
        start::fits(self.arena().geometry().bytes())
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

    /// The state of the thread that owns a slot, with room for `nframe` frames.
    pub fn state_for_slot(&self, slot: u32, nframe: usize) -> Option<*mut Thread> {
        let place = self.states.get(slot as usize)?;
        let old = place.load(Ordering::Acquire);
        // SAFETY: a state belongs to its slot, and the slot is the caller's.
        let old_nframe = unsafe { old.as_ref() }.map(Thread::nframe);
        if old_nframe == Some(nframe) {
            return Some(old);
        }
        let bytes = Thread::bytes(nframe);
        let memory = sys::map_wiped_on_fork(bytes)?;
        self.header().target.own_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        // SAFETY: fresh zeroed memory of that size, unmapped only when another takes its place.
        let new = unsafe { Thread::lay_out(memory, nframe) };
        place.store(new, Ordering::Release);
        Some(new)
    }

    /// Whether this epoch goes on.
    #[inline]
    pub fn is_epoch(&self, epoch: u32) -> bool {
        self.header().session.epoch.load(Ordering::Acquire) == epoch
    }

    /// Takes from a free list; waits for the aggregator when it is empty. None when tracing of the process or the
    /// epoch has ended meanwhile; a loss is counted when it was not the aggregator that ended it.
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

    /// True once in a quarter of the pool: the aggregator shall look, however long it meant to sleep.
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
