//! Brings the collector into a process started without it, and hooks and unhooks the loaded
//! objects.
//!
//! ```text
//! module       task                                                              stopped threads
//! [`map`]      reads the loaded objects, their symbols, their unwind tables      none
//! [`seccomp`]  checks for a filter that kills the process for the system calls   none
//!              of the collector
//! [`apart`]    runs all of this in a child of the aggregator; kills a            none
//!              suspended child
//! [`point`]    finds a thread outside of the allocator, the loader and           the thread
//!              signal handlers
//! [`calls`]    leads the direct calls of an allocator within the program         all, for changes
//! [`thread`]   makes calls in the borrowed thread: mmap, memfd_create, dlopen,   the thread
//!              heapline_attach; then the thread goes on where it was
//! ```
//!
//! One thread is stopped during these calls. All other threads run on, except in a program with an
//! allocator of its own. The process is safe for three reasons:
//! - The thread always has a way back. Every errand of the thread ends in `rt_sigreturn`, with a
//!   frame of all its registers (`frame.rs`). When the tracing process dies at any instant, the
//!   thread goes on by itself.
//! - The injection writes only two parts of the memory of the process: the unused part below the
//!   stack of the thread, and the distances in direct calls.
//! - Every wait has a limit. A call beyond the limit is left to the thread.

mod apart;
mod calls;
mod code;
mod entries;
mod library;
mod loader;
mod map;
mod memory;
mod point;
mod release;
mod seccomp;
mod stack;
mod step;
mod symbols;
mod thread;
mod waits;

use crate::arch::registers;
use crate::process::{beats, frozen, ptrace, rights};
pub use calls::Led;
use calls::Survey;
use heapline_shared_format::inject::{ATTACH_SYMBOL, DETACH_SYMBOL, RELEASE_SYMBOL, Request, python, status};
use heapline_shared_format::text::counted;
use loader::Loader;
use map::Map;
use memory::Memory;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};
use step::Step;
use thread::{Borrowed, CallError};

/// Limit of the search for a safe point during a detach.
const PATIENCE: Duration = Duration::from_secs(5);
/// Fewest rounds of looks at all threads, whatever the time. On a busy machine the time may be over
/// after one round.
const FEWEST_ROUNDS: u32 = 10;
/// First round with the code of the C library read, for functions without a name.
const STUDIOUS_ROUND: u32 = 1;
/// Limit for a program to load the C library.
const TO_LOAD: Duration = Duration::from_millis(100);

/// Reasons why the collector was not brought in.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message says what each means")]
pub enum InjectError {
    #[error("cannot trace it by ptrace: {0}{hint}", hint = rights::hint(.0))]
    Ptrace(io::Error),
    #[error("cannot read its memory: {0}{hint}", hint = rights::hint(.0))]
    Memory(io::Error),
    #[error("it has neither glibc 2.17 or newer nor musl, one of which the collector needs ({0})")]
    NoLibrary(&'static str),
    #[error("its seccomp filter would not let the collector work: {0}")]
    Seccomp(String),
    #[error("it uses a shadow stack, through which no thread can be borrowed")]
    ShadowStack,
    #[error(
        "none of {} was at a point where a library can be loaded, in {} at all of them over {seconds:.1} s \
         ({last}): try again, give it longer with --wait, or start it with aggregator run", counted(*threads as u64, "thread"),
        counted((*rounds).into(), "look")
    )]
    NoSafePoint { threads: usize, rounds: u32, seconds: f64, last: String },
    #[error("{what} failed in it: {reason}")]
    Refused { what: &'static str, reason: String },
    #[error("it ended meanwhile")]
    Gone,
    #[error("its thread {tid} did not return from {what} in time: it was let go, and goes on by itself")]
    Late { tid: u32, what: &'static str },
    #[error("cannot start a process for that: {0}")]
    Process(io::Error),
    #[error("the injection was suspended for a second, and given up; the process goes on: try again")]
    Suspended,
    #[error("the injection was killed; the process goes on: try again")]
    Ended,
    #[error("{0}")]
    Told(String),
}

/// Result of an injection.
#[derive(Clone, Copy, Debug)]
pub struct Injected {
    /// Answer of the collector.
    pub answer: Request,
    /// Direct calls of an allocator within the program; none without such an allocator.
    pub calls: Option<Led>,
    /// Whether all memory and the descriptor were given back.
    pub is_released: bool,
    /// Time during which the borrowed thread did no work of its own.
    pub stopped: Duration,
}

/// Brings the collector into the process, unless the collector is there, and leads the calls of the
/// process to the collector.
///
/// - `path` is a file with the library, for programs started by the process.
/// - `patience` is the limit of the search for a safe point.
pub fn attach(pid: u32, pool_bytes: u64, path: Option<&Path>, patience: Duration) -> Result<Injected, InjectError> {
    let request = Request { pool_bytes, ..Request::default() };
    apart::run(|| run(&Errand { pid, function: ATTACH_SYMBOL, request, path, patience }))
}

/// Leads the calls of the process back to the original functions. Returns none when no injected
/// collector is there.
pub fn detach(pid: u32) -> Result<Option<Injected>, InjectError> {
    leave(pid, DETACH_SYMBOL)
}

/// Unmaps the memory of the collector, once no call leads to the collector any more.
///
/// | Result | Meaning |
/// | --- | --- |
/// | `is_released` is true | everything was given back |
/// | `is_released` is false | a thread prevented the release |
/// | none | no injected collector is there |
pub fn release(pid: u32) -> Result<Option<Injected>, InjectError> {
    leave(pid, RELEASE_SYMBOL)
}

fn leave(pid: u32, function: &str) -> Result<Option<Injected>, InjectError> {
    if !is_there(pid) {
        return Ok(None);
    }
    let errand = Errand { pid, function, request: Request::default(), path: None, patience: PATIENCE };
    apart::run(|| run(&errand)).map(Some)
}

/// Whether an injected collector is in the process.
pub fn is_there(pid: u32) -> bool {
    map::collector_of(pid).is_ok_and(|base| base.is_some())
}

/// Runs all readers of an injection on stored data, without a process, to test the readers. The
/// registers of the thread are those of [`registers::of_thread`]. Returns whether the thread could
/// be borrowed.
pub fn rehearse(maps: &str, memory: File, thread: [u64; 4]) -> bool {
    let memory = Memory::of_file(memory);
    let map = Map::parse(0, maps, &memory);
    let survey = Survey::of(&map, &memory);
    let Ok(mut loader) = Loader::find(&map, &memory) else { return false };
    loader.study(&map, &memory);
    let place = Place { map: &map, memory: &memory, loader: &loader, survey: survey.as_ref() };
    point::judge(&registers::of_thread(thread), &place).is_ok()
}

pub use seccomp::forbidden_by;

/// Task of a borrowed thread.
struct Errand<'a> {
    pid: u32,
    /// Name of the collector's function to call.
    function: &'a str,
    request: Request,
    path: Option<&'a Path>,
    patience: Duration,
}

fn run(errand: &Errand<'_>) -> Result<Injected, InjectError> {
    let pid = errand.pid;
    let (line, word) = registers::SECOND_STACK;
    if crate::process::procfs::status(pid, line).is_some_and(|features| features.contains(word)) {
        return Err(InjectError::ShadowStack);
    }
    point::check(pid)?;
    let begun = Instant::now();
    let memory = Memory::open(pid).map_err(InjectError::Memory)?;
    let (map, mut loader) = loop {
        let map = Map::read(pid, &memory).map_err(InjectError::Memory)?;
        match Loader::find(&map, &memory) {
            Ok(loader) => break (map, loader),
            // A program that was just started may not have loaded its libraries.
            Err(InjectError::NoLibrary(_)) if begun.elapsed() < TO_LOAD => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error),
        }
    };
    seccomp::check(pid, loader.finds_objects)?;
    beats::rest();
    let survey = Survey::of(&map, &memory);
    let begun = Instant::now();
    let mut last;
    let mut round = 0;
    loop {
        if round == STUDIOUS_ROUND {
            loader.study(&map, &memory);
        }
        let place = Place { map: &map, memory: &memory, loader: &loader, survey: survey.as_ref() };
        let tids = ptrace::threads(pid);
        if tids.is_empty() {
            return Err(InjectError::Gone);
        }
        for &tid in &tids {
            match point::stop_at(tid, &place, round) {
                Ok(stopped) => return use_thread(&stopped, &place, errand),
                Err(point::NotHere::Not(why)) => last = why,
                Err(point::NotHere::Error(error)) => return Err(error),
            }
            if begun.elapsed() > errand.patience && round >= FEWEST_ROUNDS {
                let (threads, seconds) = (tids.len(), begun.elapsed().as_secs_f64());
                return Err(InjectError::NoSafePoint { threads, rounds: round, seconds, last });
            }
        }
        round += 1;
        std::thread::sleep(Duration::from_micros(500 * u64::from(round.min(20))));
    }
}

/// Facts about the process, gathered before a thread is stopped.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    map: &'a Map,
    memory: &'a Memory,
    loader: &'a Loader,
    survey: Option<&'a Survey>,
}

fn use_thread(stopped: &point::Stopped, place: &Place<'_>, errand: &Errand<'_>) -> Result<Injected, InjectError> {
    step::pass(Step::Stopped);
    let mut thread = Borrowed::new(stopped, place.memory, place.loader.gadgets)?;
    let worked = work(&mut thread, place, errand);
    let left = thread.give_back();
    let Done { answer, calls, is_released } = worked.map_err(|error| explain(error, stopped.tid))?;
    left.map_err(|error| explain(error, stopped.tid))?;
    step::pass(Step::Restored);
    Ok(Injected { answer, calls, is_released, stopped: stopped.since.elapsed() })
}

fn explain(error: CallError, tid: u32) -> InjectError {
    match error {
        CallError::Gone => InjectError::Gone,
        CallError::Late(what) => InjectError::Late { tid, what },
        CallError::Failed { what, reason } => InjectError::Refused { what, reason },
        CallError::Ptrace(error) => InjectError::Ptrace(error),
    }
}

/// Results of a borrowed thread.
struct Done {
    answer: Request,
    calls: Option<Led>,
    is_released: bool,
}

fn work(thread: &mut Borrowed<'_>, place: &Place<'_>, errand: &Errand<'_>) -> Result<Done, CallError> {
    let &Place { map, memory, loader, survey } = place;
    let base = match map.collector() {
        Some(base) => base,
        None => library::load(thread, errand.pid, loader)?,
    };
    if errand.function == RELEASE_SYMBOL {
        let is_released = release::release(thread, place, base)?;
        return Ok(Done { answer: Request::default(), calls: None, is_released });
    }
    let function = library::function(errand.function);
    let offset = function.ok_or_else(|| failed("finding the collector's function", "it is not there"))?;
    let path = errand.path.map(|path| path.as_os_str().as_bytes()).unwrap_or_default();
    let path_at = if path.is_empty() { 0 } else { thread.place(path)? };
    let request = Request { path: path_at, path_bytes: path.len() as u64, ..errand.request };
    let at = thread.place(&request.to_bytes())?;
    step::pass(Step::Loaded);
    thread.call("the collector", base + offset, [at, 0, 0])?;
    step::pass(Step::Called);
    let mut bytes = [0; Request::BYTES];
    memory.read(at, &mut bytes).map_err(CallError::Ptrace)?;
    let answer = Request::from_bytes(&bytes);
    if let Some(reason) = refusal(answer.status) {
        return Err(failed("starting the collector", reason));
    }
    let calls = survey.map(|survey| match errand.function {
        DETACH_SYMBOL => survey.lead_back(thread, map, memory),
        _ => survey.lead(thread, map, memory, base),
    });
    let calls = calls.transpose()?;
    // With a Python interpreter, the interpreter's allocators lead to the collector for some time.
    let is_over = errand.function == DETACH_SYMBOL && answer.python == python::NONE && answer.refused == 0;
    let is_released = is_over && release::release(thread, place, base)?;
    Ok(Done { answer, calls, is_released })
}

fn failed(what: &'static str, reason: &str) -> CallError {
    CallError::Failed { what, reason: reason.to_owned() }
}

fn refusal(answer: u64) -> Option<&'static str> {
    match answer {
        status::DONE => None,
        status::DISABLED => Some("HEAPLINE_DISABLE=1 is in its environment"),
        status::NO_OBJECTS => Some("its C library does not say where its objects are"),
        status::NO_MEMORY => {
            Some("the system gives it no shared memory file (ulimit -f, -n, -v, seccomp or its cgroup)")
        }
        status::NO_THREAD_WORDS => Some("its C library is a musl older than 1.1.22"),
        _ => Some("the collector has failed (please report this)"),
    }
}
