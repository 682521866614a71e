//! Start of the collector in a process. There are three ways to begin:
//!
//! 1. with the arena made by the aggregator;
//! 2. with an idle arena made here, for an aggregator that may come later;
//! 3. as a child in a followed tree: with an arena made here and a session begun here.
//!
//! Such a child records from the first event on and sends the arena to the aggregator at once
//! ([`Hello`]). The aggregator adopts the session when its turn comes. Nothing is lost if the child
//! is gone by then.

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
use heapline_shared_format::tree::{Birth, Hello, MAX_ARGUMENT_BYTES, MAX_EXECUTABLE_BYTES, Recording, Way};

static HAS_STARTED: AtomicBool = AtomicBool::new(false);
/// Everything was given back ([`release`]): the next attach begins anew.
static IS_RELEASED: AtomicBool = AtomicBool::new(false);
static BEFORE_START: AtomicU64 = AtomicU64::new(0);
/// Pool of a collector preloaded without an aggregator, in bytes of virtual memory.
const IDLE_POOL_BYTES: u64 = 64 << 20;
/// Longest wait of a child while the aggregator's queue is full.
const PATIENCE_NANOSECONDS: u64 = 1_000_000_000;

/// Divisor: the collector takes at most this part (1/16) of the address space left to a limited
/// program.
const SHARE_OF_ADDRESS_SPACE: usize = 16;

/// Returns the geometry of an arena with a pool of `pool_bytes`, smaller where the program's
/// address space is limited. None if even the smallest arena would take too much.
fn fitting(pool_bytes: u64) -> Option<Geometry> {
    let Some(left) = sys::address_space_left() else { return Some(Geometry::for_memory(pool_bytes)) };
    let most = left / SHARE_OF_ADDRESS_SPACE;
    let without_pool = Geometry::for_memory(0).pool_offset();
    let geometry = Geometry::for_memory(pool_bytes.min(most.saturating_sub(without_pool) as u64));
    (geometry.bytes() <= most).then_some(geometry)
}

/// Whether an arena of `bytes` fits into the address space of the program, by the rule of
/// [`fitting`].
fn fits(bytes: usize) -> bool {
    sys::address_space_left().is_none_or(|left| bytes <= left / SHARE_OF_ADDRESS_SPACE)
}

/// When the collector came into the process.
#[derive(Clone, Copy)]
enum Origin {
    /// With the program, loaded by the loader.
    Start,
    /// Later, injected by an aggregator.
    Injection {
        /// Room for records, in bytes.
        pool_bytes: u64,
    },
}

/// First start of the collector in a program. Returns the initialised state.
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
    // SAFETY: the memory is zeroed and has the size of a Process; zeros are a valid Process.
    let process = unsafe { &mut *memory.cast::<Process>() };
    // A running program owns the environment and may be reading it.
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
    if flags & target_flag::NO_OBJECTS != 0 {
        return None;
    }
    process.is_running.store(1, Ordering::Release);
    Some(process)
}

/// Stores the path of the collector: the path given by the aggregator, or, if the user preloaded
/// the collector, the path known to the loader.
fn find_own_path() {
    // SAFETY: the process starts, and nobody reads the text yet.
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

/// Returns the way for children of the process with this arena. None while the process is not
/// traced.
fn way_from(header: &Header, fork: u64) -> Option<Way> {
    let session = &header.session;
    let is_traced =
        session.state.load(Ordering::Acquire) != state::IDLE && header.target.end_cause.load(Ordering::Relaxed) == 0;
    if !is_traced {
        return None;
    }
    let recording = Recording {
        nframe: session.nframe.load(Ordering::Relaxed),
        clock: session.clock.load(Ordering::Relaxed),
        sample: session.sample.load(Ordering::Relaxed),
    };
    Way::of(&header.tree, fork, recording)
}

/// Begins a forked child. `parent` is the header of the parent's arena.
///
/// # Safety
/// 1. `process` is the wiped state, and nobody else uses it.
/// 2. The calling thread is the only traced thread of the child.
unsafe fn begin_child(process: *mut Process, parent: &Header) -> Option<()> {
    let way = way_from(parent, fork::own_number())?;
    // The child takes another session number than the parent: numbers of code objects that are kept
    // from the parent's session were never defined in the child's session.
    let session = parent.session.number.load(Ordering::Relaxed).wrapping_add(1).max(1);
    // SAFETY: promise 1 of the caller: `process` is the wiped state and has no other user.
    let process = unsafe { &mut *process };
    let begun = if IS_SANDBOXED.load(Ordering::Relaxed) { None } else { process.begin_again(way, session) };
    if begun.is_none() {
        parent.tree.untold.fetch_add(1, Ordering::Relaxed);
    }
    begun
}

/// Clears what the calling thread remembers of the parent.
fn forget_thread() {
    tls::set_pending(0);
    tls::set_pending_session(0);
    tls::set_read_stack(0);
    tls::set_fork(0);
}

impl Process {
    /// First step of every beginning: sets the process id and probes the system. Returns the
    /// [`target_flag`]s.
    fn begin(&mut self) -> u32 {
        self.pid = sys::getpid();
        self.fd = -1;
        let membarrier = if sys::register_membarrier() { target_flag::MEMBARRIER } else { 0 };
        let objects = if elf::can_find_objects() { 0 } else { target_flag::NO_OBJECTS };
        membarrier | objects
    }

    fn begin_again(&mut self, way: Way, session: u32) -> Option<()> {
        forget_thread();
        python::in_child();
        let flags = self.begin();
        self.is_forked = true;
        self.rules = MaybeUninit::new(Table::map()?);
        // The new table has no rules yet.
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

    /// Maps the arena made by the aggregator. None if the file is not the announced file, is too
    /// large or is not sealed.
    fn adopt(&mut self, handle: ArenaHandle) -> Option<Arena> {
        let file = sys::file_id(handle.fd)?;
        if (file.device, file.inode) != (handle.device, handle.inode) {
            return None;
        }
        let bytes = usize::try_from(file.bytes).ok().filter(|&bytes| fits(bytes))?;
        if !sys::is_sealed(handle.fd) {
            // Whoever can cut the file could turn any access into a SIGBUS.
            return None;
        }
        let base = NonNull::new(sys::map_file(handle.fd, bytes)?)?;
        // Without a descriptor the next program makes an arena of its own.
        self.fd = sys::move_out_of_the_way(handle.fd).unwrap_or(-1);
        self.handle = ArenaHandle { fd: self.fd, ..handle };
        // SAFETY: the arena was mapped just now, is sealed, and is unmapped only when nobody uses
        // it any more.
        unsafe { Arena::open(base, bytes) }.ok()
    }

    /// Makes an idle arena, for an aggregator that may come later.
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
        // SAFETY: the memory is fresh zeros, mapped just now and sealed, and is unmapped only when
        // nobody uses it.
        let arena = unsafe { Arena::create(base, geometry) };
        arena.header().session.number.store(LAST_SESSION.load(Ordering::Relaxed), Ordering::Relaxed);
        Some(arena)
    }
}

/// A session begun by the process itself.
struct Beginning {
    way: Way,
    birth: Birth,
    /// Number of the session.
    session: u32,
}

impl Beginning {
    /// Makes the arena, begins the session and reports the process. None if there is no memory or
    /// nobody to report to; nothing is left then.
    fn make(&self, process: &mut Process, flags: u32) -> Option<Arena> {
        if flags & target_flag::NO_OBJECTS != 0 {
            return None;
        }
        let pool_bytes = u64::from(self.way.segments.clamp(MIN_SEGMENTS, MAX_SEGMENTS)) * SEGMENT_BYTES as u64;
        let geometry = fitting(pool_bytes)?;
        let fd = sys::sealed_memory_file(c"heapline-arena", geometry.bytes())?;
        let base = sys::map_file(fd, geometry.bytes()).and_then(NonNull::new);
        let arena = base.and_then(|base| {
            // SAFETY: the memory is fresh zeros, mapped just now and sealed. Unmapped below only
            // when nobody knows the arena.
            let arena = unsafe { Arena::create(base, geometry) };
            let key = sys::random();
            self.begin(&arena, key, flags);
            process.image = 1;
            if self.tell(process.pid, key, fd) {
                return Some(arena);
            }
            // SAFETY: the aggregator was not told, so nobody knows the arena.
            unsafe { sys::unmap(base.as_ptr(), geometry.bytes()) };
            None
        });
        // The program finds no foreign descriptor. The aggregator has the descriptor; after exec
        // the next program makes an arena of its own.
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
        // The way for children asks for the same pool as this way, even if a smaller one was
        // fitting here.
        self.way.open(&header.tree, key);
        let state = if self.way.sample == 0 { state::TRACING } else { state::SAMPLING };
        session.state.store(state, Ordering::Release);
    }

    /// Sends the arena to the aggregator.
    fn tell(&self, pid: u32, key: u64, fd: i32) -> bool {
        const SCRATCH_BYTES: usize = MAX_EXECUTABLE_BYTES + MAX_ARGUMENT_BYTES;
        // Not on the stack, which may be a small one.
        let Some(memory) = sys::map(SCRATCH_BYTES) else { return false };
        // SAFETY: the memory is fresh, has this size and is unmapped below.
        let scratch = unsafe { core::slice::from_raw_parts_mut(memory, SCRATCH_BYTES) };
        let (path, arguments) = scratch.split_at_mut(MAX_EXECUTABLE_BYTES);
        let n = executable::path(path);
        // A path without room is left out, not cut off.
        let executable = if n < MAX_EXECUTABLE_BYTES { &path[..n] } else { &[] };
        let n = sys::fill_from_file(c"/proc/self/cmdline", arguments);
        let arguments = &arguments[..n];
        let Way { address, parent, fork, .. } = self.way;
        let birth = self.birth;
        let hello = Hello { token: address.token, key, parent, fork, birth, pid, executable, arguments };
        let parts = [&hello.head()[..], executable, arguments];
        let is_told = sys::send_with_file(&address.socket_name(), parts, fd, PATIENCE_NANOSECONDS);
        // SAFETY: nobody uses the memory any more.
        unsafe { sys::unmap(memory, SCRATCH_BYTES) };
        is_told
    }
}

/// Returns the way for children of this process. None while children are not followed. A forked
/// child before its start uses the way of the parent.
pub fn way_for_children() -> Option<Way> {
    let (header, fork) = match get() {
        Some(process) => (process.header(), 0),
        // SAFETY: `HEADER` points to an arena's header, or is null; the arena is mapped as long as
        // the pointer stands.
        None if is_forked() => unsafe { (HEADER.load(Ordering::Acquire).as_ref()?, fork::own_number()) },
        None => return None,
    };
    way_from(header, fork)
}

/// Prepares for restricted system calls of the program. A forked child starts now, with the system
/// calls needed for the start; children forked later make none.
pub fn before_sandbox(slot: usize) {
    if is_forked() {
        let _ = get_or_start(slot);
    }
    elf::ask_no_more();
    IS_SANDBOXED.store(true, Ordering::Relaxed);
}

/// Returns the process state. Starts the collector at the first call with an initialised libc.
/// `slot` is the stack address where the hook was entered.
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

/// Starts the collector in a running process, with a pool of `pool_bytes`.
pub fn start_injected(pool_bytes: u64) -> Option<&'static Process> {
    let is_first = !HAS_STARTED.swap(true, Ordering::AcqRel);
    if is_first || IS_RELEASED.swap(false, Ordering::AcqRel) {
        start_from(thread::stack_pointer(), Origin::Injection { pool_bytes });
    }
    get()
}

/// Gives the arena, its descriptor and all memory back to the system. Until the next attach every
/// hook passes calls through.
///
/// # Safety
/// 1. No other thread runs, and none stands in the collector.
/// 2. No words of another thread ([`tls`]) point to memory of the collector.
pub unsafe fn release() {
    STATE.store((&raw const NEVER).cast_mut(), Ordering::Release);
    // SAFETY: `HEADER` points to an arena's header, or is null; the arena is unmapped only below.
    if let Some(header) = unsafe { HEADER.load(Ordering::Acquire).as_ref() } {
        LAST_SESSION.store(header.session.number.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    let process = PROCESS.swap(ptr::null_mut(), Ordering::AcqRel);
    let arena = HEADER.swap(ptr::null_mut(), Ordering::AcqRel);
    tls::clear();
    // SAFETY: promises 1 and 2 of the caller: nobody uses any of this memory any more.
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
            // SAFETY: `start` has initialised the process.
            unsafe { &raw const (*process).header().session.state }
        }
        None => &raw const NEVER,
    };
    STATE.store(state.cast_mut(), Ordering::Release);
    real::set_errno(errno);
}

/// Begins a followed forked child at the first event. A child that is not followed does nothing
/// from then on.
#[cold]
fn begin_in_child(slot: usize) -> Option<&'static Process> {
    let process = PROCESS.load(Ordering::Acquire);
    // SAFETY: `PROCESS` is null or points to the state, which is unmapped only by `release`.
    let seen = unsafe { process.as_ref() }?;
    // A signal handler may interrupt the beginning.
    if seen.has_begun.swap(true, Ordering::AcqRel) {
        return None;
    }
    let errno = real::errno();
    tls::set_recovery(0);
    tls::set_starting(slot);
    // A failure in here must not be recorded in the parent's arena.
    let parent = HEADER.swap(ptr::null_mut(), Ordering::AcqRel);
    let bytes = ARENA_BYTES.load(Ordering::Relaxed);
    // SAFETY: the state is wiped, and nobody uses it before it runs. The parent's arena is mapped
    // until below.
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

/// Whether a program begun by exec has room for an arena of the same size.
pub fn has_room_again(process: &Process) -> bool {
    fits(process.arena().geometry().bytes())
}
