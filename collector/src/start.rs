//! How a process begins: with the arena that the aggregator made, with one of its own that waits for an aggregator, or, as
//! a child in a followed tree, with one of its own and a session that it begins itself.
//!
//! Such a child records from its first event on and reports itself at once ([`Hello`]); the aggregator adopts its session
//! when it comes to that. Nothing is lost if the child is gone by then.

use crate::platform::environment::ArenaHandle;
use crate::platform::{elf, environment, executable, sys, tls};
use crate::process::{
    ARENA_BYTES, HEADER, IS_SANDBOXED, LAST_SESSION, NEVER, OWN_PATH, PROCESS, Process, STATE, VERIFIES, get, is_forked,
};
use crate::rules::Table;
use crate::thread::{self, Thread};
use crate::{fail, fork, python, real, sampling};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use heapline_shared_format::arena::{
    Arena, Geometry, Header, MAX_SEGMENTS, MAX_SLOTS, MIN_SEGMENTS, SEGMENT_BYTES, UNCLAIMED, state, target_flag,
};
use heapline_shared_format::tree::{Birth, Hello, MAX_ARGUMENT_BYTES, MAX_EXECUTABLE_BYTES, Way};

static HAS_STARTED: AtomicBool = AtomicBool::new(false);
/// All was given back ([`release`]): the next attach begins anew.
static IS_RELEASED: AtomicBool = AtomicBool::new(false);
static BEFORE_START: AtomicU64 = AtomicU64::new(0);
/// Pool of a collector that was preloaded without an aggregator, in bytes of virtual memory.
const IDLE_POOL_BYTES: u64 = 64 << 20;
/// How long a child waits when the aggregator's queue is full.
const PATIENCE_NANOSECONDS: u64 = 1_000_000_000;

/// What the collector takes at most of the address space that a limited program has left: one part of so many.
const SHARE_OF_ADDRESS_SPACE: usize = 16;

/// The arena for a pool of so many bytes, smaller where the program's address space is limited; none where even the smallest
/// would be missed.
fn fitting(pool_bytes: u64) -> Option<Geometry> {
    let Some(left) = sys::address_space_left() else { return Some(Geometry::for_memory(pool_bytes)) };
    let most = left / SHARE_OF_ADDRESS_SPACE;
    let without_pool = Geometry::for_memory(0).pool_offset();
    let geometry = Geometry::for_memory(pool_bytes.min(most.saturating_sub(without_pool) as u64));
    (geometry.bytes() <= most).then_some(geometry)
}

/// Whether an arena of so many bytes fits into the program's address space as [`fitting`] says.
fn fits(bytes: usize) -> bool {
    sys::address_space_left().is_none_or(|left| bytes <= left / SHARE_OF_ADDRESS_SPACE)
}

/// When the collector came into the process.
#[derive(Clone, Copy)]
enum Origin {
    /// With the program, by the loader.
    Start,
    /// Later, by an aggregator that wants this much room for records.
    Injection {
        /// In bytes.
        pool_bytes: u64,
    },
}

/// The first start in a program.
fn start(origin: Origin) -> Option<*mut Process> {
    let is_disabled = environment::is_disabled();
    let handle = environment::arena();
    let way = environment::way();
    if let Some(name) = environment::fault() {
        fail::arm(name);
    }
    VERIFIES.store(environment::verifies(), Ordering::Relaxed);
    let sees_python = environment::sees_python();
    let memory = sys::map_wiped_on_fork(size_of::<Process>())?;
    // SAFETY: zeroed memory of that size; zeros are a valid Process.
    let process = unsafe { &mut *memory.cast::<Process>() };
    // The environment of a program that runs is its own, which may be reading it.
    if matches!(origin, Origin::Start) {
        find_own_path();
    }
    if is_disabled {
        return None;
    }
    let mut flags = process.begin();
    let arena = match (origin, handle, way) {
        (Origin::Injection { pool_bytes }, ..) => process.create_idle(pool_bytes)?,
        (_, Some(handle), _) => process.adopt(handle)?,
        (_, None, Some(way)) => Beginning { way, birth: Birth::Exec, session: 1 }.make(process, flags)?,
        (_, None, None) => process.create_idle(IDLE_POOL_BYTES)?,
    };
    process.take_arena(arena);
    fail::point(fail::Site::Init);
    process.rules = MaybeUninit::new(Table::map()?);
    if sees_python && matches!(origin, Origin::Start) && !cfg!(feature = "embedded") {
        flags |= python::prepare();
    }
    let target = &arena.header().target;
    target.flags.store(flags, Ordering::Relaxed);
    if process.image == 0 {
        process.image = target.images.fetch_add(1, Ordering::Release) + 1;
    }
    if flags & target_flag::OLD_GLIBC != 0 {
        return None;
    }
    process.is_running.store(1, Ordering::Release);
    Some(process)
}

/// The path that the aggregator gave; where the user preloaded the collector, what the loader says.
fn find_own_path() {
    // SAFETY: the process starts, and nobody reads yet.
    let text = unsafe { &mut *OWN_PATH.text.get() };
    // The last byte stays zero.
    let most = text.len() - 1;
    let mut bytes = environment::clean(&mut text[..most]);
    if bytes == 0
        && let Some(own) = elf::find_object(find_own_path as fn() as usize)
        && own.path().starts_with(b"/")
        && let Some(place) = text[..most].get_mut(..own.path().len())
    {
        place.copy_from_slice(own.path());
        bytes = own.path().len();
    }
    OWN_PATH.bytes.store(bytes, Ordering::Release);
}

/// The way for children of the process with this arena, while it is traced.
fn way_from(header: &Header, fork: u64) -> Option<Way> {
    let session = &header.session;
    let is_traced =
        session.state.load(Ordering::Acquire) != state::IDLE && header.target.end_cause.load(Ordering::Relaxed) == 0;
    if !is_traced {
        return None;
    }
    let (nframe, clock) = (session.nframe.load(Ordering::Relaxed), session.clock.load(Ordering::Relaxed));
    Way::of(&header.tree, fork, (nframe, clock, session.sample.load(Ordering::Relaxed)))
}

/// A forked child's beginning; `parent` is its parent's arena.
///
/// # Safety
/// 1. `process` is the wiped state, and nobody else uses it.
/// 2. The calling thread is the only one of the child that traces.
unsafe fn begin_child(process: *mut Process, parent: &Header) -> Option<()> {
    let way = way_from(parent, fork::own_number())?;
    // Another than the parent's: what is kept of that one (numbers of code objects) was never told in this one.
    let session = parent.session.number.load(Ordering::Relaxed).wrapping_add(1).max(1);
    // SAFETY: promise 1.
    let process = unsafe { &mut *process };
    let begun = if IS_SANDBOXED.load(Ordering::Relaxed) { None } else { process.begin_again(way, session) };
    if begun.is_none() {
        parent.tree.untold.fetch_add(1, Ordering::Relaxed);
    }
    begun
}

/// What the calling thread remembers of its life in the parent.
fn forget_thread() {
    tls::set_pending(0);
    tls::set_pending_session(0);
    tls::set_read_stack(0);
    tls::set_fork(0);
}

impl Process {
    /// What every beginning needs. Returns the [`target_flag`]s.
    fn begin(&mut self) -> u32 {
        self.pid = sys::getpid();
        self.fd = -1;
        let membarrier = if sys::register_membarrier() { target_flag::MEMBARRIER } else { 0 };
        let glibc = if elf::can_find_objects() { 0 } else { target_flag::OLD_GLIBC };
        membarrier | glibc
    }

    fn begin_again(&mut self, way: Way, session: u32) -> Option<()> {
        forget_thread();
        python::in_child();
        let flags = self.begin();
        self.is_forked = true;
        self.rules = MaybeUninit::new(Table::map()?);
        // It is empty.
        self.rules_session.store(session, Ordering::Relaxed);
        let arena = Beginning { way, birth: Birth::Fork, session }.make(self, flags)?;
        self.take_arena(arena);
        self.is_running.store(1, Ordering::Release);
        Some(())
    }

    fn take_arena(&mut self, arena: Arena) {
        HEADER.store((&raw const *arena.header()).cast_mut(), Ordering::Release);
        ARENA_BYTES.store(arena.geometry().bytes(), Ordering::Relaxed);
        self.arena = MaybeUninit::new(arena);
        let target = &arena.header().target;
        target.pid.store(self.pid, Ordering::Relaxed);
        target.own_bytes.fetch_add((size_of::<Process>() + Table::BYTES) as u64, Ordering::Relaxed);
        target.before_start.store(BEFORE_START.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Maps the arena that the aggregator made.
    fn adopt(&mut self, handle: ArenaHandle) -> Option<Arena> {
        let file = sys::file_id(handle.fd)?;
        if (file.device, file.inode) != (handle.device, handle.inode) {
            return None;
        }
        let bytes = usize::try_from(file.bytes).ok().filter(|&bytes| fits(bytes))?;
        if !sys::is_sealed(handle.fd) {
            // Whoever could cut it could make any of our accesses a SIGBUS.
            return None;
        }
        let base = NonNull::new(sys::map_file(handle.fd, bytes)?)?;
        // Without a descriptor the next program has an arena of its own.
        self.fd = sys::move_out_of_the_way(handle.fd).unwrap_or(-1);
        self.handle = ArenaHandle { fd: self.fd, ..handle };
        // SAFETY: mapped just now, never unmapped, and sealed.
        unsafe { Arena::open(base, bytes) }.ok()
    }

    /// Makes an arena of our own, for an aggregator that may come later.
    fn create_idle(&mut self, pool_bytes: u64) -> Option<Arena> {
        let geometry = fitting(pool_bytes)?;
        let fd = sys::sealed_memory_file(c"heapline-arena", geometry.bytes()).and_then(sys::move_out_of_the_way)?;
        let base = sys::map_file(fd, geometry.bytes()).and_then(NonNull::new);
        let (Some(base), Some(file)) = (base, sys::file_id(fd)) else {
            sys::close(fd);
            return None;
        };
        self.fd = fd;
        self.handle = ArenaHandle { fd, device: file.device, inode: file.inode };
        // SAFETY: fresh zeros, mapped just now, sealed, and unmapped only when nobody uses them.
        let arena = unsafe { Arena::create(base, geometry) };
        arena.header().session.number.store(LAST_SESSION.load(Ordering::Relaxed), Ordering::Relaxed);
        Some(arena)
    }
}

/// A session that the process begins itself.
struct Beginning {
    way: Way,
    birth: Birth,
    /// Number of the session.
    session: u32,
}

impl Beginning {
    /// Makes the arena, begins the session and reports the process. None, and nothing is left, when there is no memory or
    /// nobody to report to.
    fn make(&self, process: &mut Process, flags: u32) -> Option<Arena> {
        if flags & target_flag::OLD_GLIBC != 0 {
            return None;
        }
        let pool_bytes = u64::from(self.way.segments.clamp(MIN_SEGMENTS, MAX_SEGMENTS)) * SEGMENT_BYTES as u64;
        let geometry = fitting(pool_bytes)?;
        let fd = sys::sealed_memory_file(c"heapline-arena", geometry.bytes())?;
        let base = sys::map_file(fd, geometry.bytes()).and_then(NonNull::new);
        let arena = base.and_then(|base| {
            // SAFETY: fresh zeros, mapped just now, sealed; unmapped below only when nobody knows them.
            let arena = unsafe { Arena::create(base, geometry) };
            let key = sys::random();
            self.begin(&arena, key, flags);
            process.image = 1;
            if self.tell(process.pid, key, fd) {
                return Some(arena);
            }
            // SAFETY: as above.
            unsafe { sys::unmap(base.as_ptr(), geometry.bytes()) };
            None
        });
        // The program finds no descriptor of ours. The aggregator has it; exec gives the next program an arena of its own.
        sys::close(fd);
        arena
    }

    fn begin(&self, arena: &Arena, key: u64, flags: u32) {
        arena.free_slots().fill(arena.geometry().slots);
        arena.free_segments().fill(arena.geometry().segments);
        let header = arena.header();
        let session = &header.session;
        session.number.store(self.session, Ordering::Relaxed);
        session.clock.store(self.way.clock, Ordering::Relaxed);
        session.nframe.store(self.way.nframe, Ordering::Relaxed);
        session.sample.store(self.way.sample, Ordering::Relaxed);
        session.seed.store(key, Ordering::Relaxed);
        session.owner.store(UNCLAIMED, Ordering::Relaxed);
        session.epoch.store(1, Ordering::Relaxed);
        header.target.flags.store(flags, Ordering::Relaxed);
        header.target.images.store(1, Ordering::Relaxed);
        // The way for its children asks for as much as was asked for here, whatever fits.
        self.way.open(&header.tree, key);
        let state = if self.way.sample == 0 { state::TRACING } else { state::SAMPLING };
        session.state.store(state, Ordering::Release);
    }

    /// Sends the arena to the aggregator.
    fn tell(&self, pid: u32, key: u64, fd: i32) -> bool {
        const SCRATCH_BYTES: usize = MAX_EXECUTABLE_BYTES + MAX_ARGUMENT_BYTES;
        // Not on the stack, which may be a small one.
        let Some(memory) = sys::map(SCRATCH_BYTES) else { return false };
        // SAFETY: fresh memory of that size, unmapped below.
        let scratch = unsafe { core::slice::from_raw_parts_mut(memory, SCRATCH_BYTES) };
        let (path, arguments) = scratch.split_at_mut(MAX_EXECUTABLE_BYTES);
        let n = executable::path(path);
        // One that is cut off is none.
        let executable = if n < MAX_EXECUTABLE_BYTES { &path[..n] } else { &[] };
        let n = sys::fill_from_file(c"/proc/self/cmdline", arguments);
        let arguments = &arguments[..n];
        let Way { address, parent, fork, .. } = self.way;
        let birth = self.birth;
        let hello = Hello { token: address.token, key, parent, fork, birth, pid, executable, arguments };
        let parts = [&hello.head()[..], executable, arguments];
        let is_told = sys::send_with_file(&address.socket_name(), parts, fd, PATIENCE_NANOSECONDS);
        // SAFETY: nobody uses it any more.
        unsafe { sys::unmap(memory, SCRATCH_BYTES) };
        is_told
    }
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
    way_from(header, fork)
}

/// The program is about to restrict its system calls. A forked child makes those that it needs before that; later ones
/// make none.
pub fn before_sandbox(slot: usize) {
    if is_forked() {
        let _ = get_or_start(slot);
    }
    IS_SANDBOXED.store(true, Ordering::Relaxed);
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
            for slot in 0..MAX_SLOTS {
                let Some(place) = process.state_of_slot(slot) else { break };
                let state: *mut Thread = place.swap(ptr::null_mut(), Ordering::Relaxed).cast();
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
    let started = fail::guard(|| start(origin)).flatten();
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
    let begun = fail::guard(|| unsafe { begin_child(process, parent.as_ref()?) }).flatten();
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

/// Whether another program in the place of this one has room for the arena.
pub fn has_room_again(process: &Process) -> bool {
    fits(process.arena().geometry().bytes())
}
