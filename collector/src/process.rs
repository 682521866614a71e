//! The process's state: one page run of its own, wiped by fork.
//!
//! A forked child finds the pointer but zeros behind it, and stays untraced for its life, whichever way it was
//! forked. A vfork child shares everything with its parent: what it allocates is the parent's heap, and is recorded
//! as the parent's.

use crate::elf;
use crate::environment::{self, ArenaHandle};
use crate::modules::Known;
use crate::thread::Thread;
use crate::unwind::rules::Table;
use crate::{fail, python, real, sys, tls};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use heapline_shared_format::arena::{
    Arena, FreeList, Geometry, Header, Loss, MAX_SLOTS, end_cause, state, target_flag,
};

/// Pool of a collector that was preloaded without an aggregator, in bytes of virtual memory.
const IDLE_POOL_BYTES: u64 = 64 << 20;
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
    pid: u32,
    image: u32,
    fd: i32,
    handle: ArenaHandle,
    arena: MaybeUninit<Arena>,
    rules: MaybeUninit<Table>,
    verifies: bool,
    /// The session for which the rule table was last cleared.
    rules_session: AtomicU32,
    segments_taken: AtomicU32,
    /// Until when (monotonic nanoseconds) no thread waits for a slot.
    no_slots_until: AtomicU64,
    own_path_bytes: usize,
    own_path: [u8; LONGEST_PATH],
    states: [AtomicPtr<Thread>; MAX_SLOTS as usize],
    modules: Known,
}

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());
/// The arena's header, from the moment that there is one: an end must be told even before the start is over.
static HEADER: AtomicPtr<Header> = AtomicPtr::new(ptr::null_mut());
/// `Session::state` of the arena, or one of the two below: all that a hook looks at while nothing is traced.
#[cfg_attr(feature = "embedded", unsafe(export_name = "heapline_embedded_state"))]
static STATE: AtomicPtr<AtomicU32> = AtomicPtr::new((&raw const NOT_STARTED).cast_mut());
static NOT_STARTED: AtomicU32 = AtomicU32::new(state::TRACING);
static NEVER: AtomicU32 = AtomicU32::new(state::IDLE);
static HAS_STARTED: AtomicBool = AtomicBool::new(false);
static BEFORE_START: AtomicU64 = AtomicU64::new(0);

/// The process's state, unless it has none (not started, switched off, failed) or was forked.
#[inline]
pub fn get() -> Option<&'static Process> {
    // SAFETY: published once, never unmapped; zeros are a valid value.
    let process = unsafe { PROCESS.load(Ordering::Acquire).as_ref() }?;
    (process.is_running.load(Ordering::Relaxed) == 1).then_some(process)
}

/// Whether there is nothing to do for a thread that is not recording already.
#[inline(always)]
pub fn is_quiet() -> bool {
    // SAFETY: a static, or a word of the arena, which is never unmapped.
    unsafe { (*STATE.load(Ordering::Relaxed)).load(Ordering::Relaxed) == state::IDLE }
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
    process.is_some_and(|process| process.is_running.load(Ordering::Relaxed) == 0)
}

/// A forked child finds its state wiped, and has nothing to do from then on.
pub fn be_quiet_if_forked() {
    if is_forked() {
        STATE.store((&raw const NEVER).cast_mut(), Ordering::Relaxed);
    }
}

/// Likewise; starts the collector at the first call that finds libc ready. `slot` is where the hook was entered.
pub fn get_or_start(slot: usize) -> Option<&'static Process> {
    if HAS_STARTED.load(Ordering::Acquire) {
        return get();
    }
    if !environment::is_up() || HAS_STARTED.swap(true, Ordering::AcqRel) {
        BEFORE_START.fetch_add(1, Ordering::Relaxed);
        return None;
    }
    let errno = real::errno();
    tls::set_starting(slot);
    let started = fail::guard(start).flatten();
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

fn start() -> Option<*mut Process> {
    let is_disabled = environment::is_disabled();
    let handle = environment::arena();
    if let Some(name) = environment::fault() {
        fail::arm(name);
    }
    let verifies = environment::verifies();
    let sees_python = environment::sees_python();
    let memory = sys::map_wiped_on_fork(size_of::<Process>())?;
    // SAFETY: zeroed memory of that size; zeros are a valid Process.
    let process = unsafe { &mut *memory.cast::<Process>() };
    process.own_path_bytes = environment::clean(&mut process.own_path);
    if is_disabled {
        return None;
    }
    let arena = match handle {
        Some(handle) => process.adopt(handle)?,
        None => process.create_idle()?,
    };
    HEADER.store((&raw const *arena.header()).cast_mut(), Ordering::Release);
    fail::point(fail::Site::Init);
    process.arena = MaybeUninit::new(arena);
    process.rules = MaybeUninit::new(Table::map()?);
    process.pid = sys::getpid();
    process.verifies = verifies;
    let target = &arena.header().target;
    target.pid.store(process.pid, Ordering::Relaxed);
    target.own_bytes.fetch_add((size_of::<Process>() + Table::BYTES) as u64, Ordering::Relaxed);
    target.before_start.store(BEFORE_START.load(Ordering::Relaxed), Ordering::Relaxed);
    let mut flags = 0;
    if sys::register_membarrier() {
        flags |= target_flag::MEMBARRIER;
    }
    if !elf::can_find_objects() {
        flags |= target_flag::OLD_GLIBC;
    }
    if sees_python && !cfg!(feature = "embedded") {
        flags |= python::prepare();
    }
    target.flags.store(flags, Ordering::Relaxed);
    process.image = target.images.fetch_add(1, Ordering::Release) + 1;
    if flags & target_flag::OLD_GLIBC != 0 {
        return None;
    }
    process.is_running.store(1, Ordering::Release);
    Some(process)
}

impl Process {
    /// Maps the arena that the aggregator made.
    fn adopt(&mut self, handle: ArenaHandle) -> Option<Arena> {
        let file = sys::file_id(handle.fd)?;
        if (file.device, file.inode) != (handle.device, handle.inode) {
            return None;
        }
        let bytes = usize::try_from(file.bytes).ok()?;
        if !sys::is_sealed(handle.fd) {
            // Whoever could cut it could make any of our accesses a SIGBUS.
            return None;
        }
        let base = NonNull::new(sys::map_file(handle.fd, bytes)?)?;
        self.fd = handle.fd;
        self.handle = handle;
        sys::set_close_on_exec(handle.fd, true);
        // SAFETY: mapped just now, never unmapped, and sealed.
        unsafe { Arena::open(base, bytes) }.ok()
    }

    /// Makes an arena of our own, for an aggregator that may come later.
    fn create_idle(&mut self) -> Option<Arena> {
        let geometry = Geometry::for_memory(IDLE_POOL_BYTES);
        let fd = sys::sealed_memory_file(c"heapline-arena", geometry.bytes())?;
        let base = NonNull::new(sys::map_file(fd, geometry.bytes())?)?;
        let file = sys::file_id(fd)?;
        self.fd = fd;
        self.handle = ArenaHandle { fd, device: file.device, inode: file.inode };
        // SAFETY: fresh zeros, mapped just now, never unmapped, sealed.
        Some(unsafe { Arena::create(base, geometry) })
    }

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
        self.verifies
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

    /// The collector's own path, as the loader was given it; empty when the user preloaded it.
    pub fn own_path(&self) -> &[u8] {
        &self.own_path[..self.own_path_bytes]
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
        header.session.state.load(Ordering::Acquire) == state::TRACING
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

    /// Takes from a free list; waits for the aggregator when it is empty. None when tracing of the process or the
    /// epoch has ended meanwhile, and the loss is counted.
    pub fn take(&self, list: &FreeList<'_>, epoch: u32, loss: Loss) -> Option<u32> {
        let header = self.header();
        if self.owner_is_gone() {
            end(end_cause::ORPHANED);
            return None;
        }
        if let Some(index) = list.pop() {
            if loss == Loss::Ended && self.is_quarter_taken() {
                self.wake_aggregator();
            }
            return Some(index);
        }
        let waits_for_slot = loss == Loss::Slots;
        if waits_for_slot && sys::monotonic() < self.no_slots_until.load(Ordering::Relaxed) {
            self.count_loss(loss);
            return None;
        }
        header.progress.waits.fetch_add(1, Ordering::Relaxed);
        header.progress.waiters.fetch_add(1, Ordering::AcqRel);
        let taken = self.wait_for(list, epoch, waits_for_slot);
        header.progress.waiters.fetch_sub(1, Ordering::AcqRel);
        if taken.is_none() && header.session.epoch.load(Ordering::Relaxed) == epoch {
            self.no_slots_until.store(sys::monotonic() + SLOT_WAIT_NANOSECONDS, Ordering::Relaxed);
        }
        if taken.is_none() {
            self.count_loss(loss);
        }
        taken
    }

    fn wait_for(&self, list: &FreeList<'_>, epoch: u32, waits_for_slot: bool) -> Option<u32> {
        const NAP_NANOSECONDS: u64 = 10_000_000;
        let progress = &self.header().progress;
        let started = sys::monotonic();
        let mut last_progress = started;
        loop {
            let seen = progress.given_back.load(Ordering::Acquire);
            self.wake_aggregator();
            if let Some(index) = list.pop() {
                return Some(index);
            }
            sys::futex_wait(&progress.given_back, seen, NAP_NANOSECONDS);
            if self.owner_is_gone() {
                end(end_cause::ORPHANED);
            }
            if self.header().session.epoch.load(Ordering::Acquire) != epoch {
                return None;
            }
            let now = sys::monotonic();
            if progress.given_back.load(Ordering::Acquire) != seen {
                last_progress = now;
            } else if now.saturating_sub(last_progress) > STALL_NANOSECONDS {
                end(end_cause::STALLED);
                return None;
            }
            if waits_for_slot && now.saturating_sub(started) > SLOT_WAIT_NANOSECONDS {
                return None;
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
