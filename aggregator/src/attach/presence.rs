//! The collector in the process: present from the start of the process, or brought in by an attach.
//! The collector of an attach is unhooked at the end.

use super::find;
use super::inject::{self, InjectError, Injected, Led};
use super::{AttachConfig, AttachError};
use crate::process::library;
use crate::session;
use crate::session::SessionError;
use crate::session::arena_map::ArenaMap;
use heapline_shared_format::arena::target_flag;
use heapline_shared_format::inject::python;
use heapline_shared_format::text::counted;
use std::fs::{File, TryLockError};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// Limit of the wait for the lock of the Python interpreter. The interpreter releases the lock
/// every 5 ms, but never during a long call into C.
const FOR_PYTHON: Duration = Duration::from_secs(2);

/// The collector in a process, held by an attached aggregator.
pub struct Presence {
    /// The arena of the process.
    pub map: Arc<ArenaMap>,
    pid: u32,
    /// Lock on the arena, held until the aggregator leaves the process.
    _lock: File,
    injected: Option<Injected>,
    /// Duration of the attach.
    took: Duration,
}

impl Presence {
    /// Finds the collector in the process, or brings the collector in.
    pub fn establish(config: &AttachConfig) -> Result<Presence, AttachError> {
        let pid = config.pid;
        let begun = Instant::now();
        let found = find::arena(pid);
        if let Ok(arena) = &found {
            refuse_if_taken(pid, arena)?;
        }
        let injected = match found {
            // The process was started with the collector.
            Ok(_) if !inject::is_there(pid) => None,
            Ok(_) | Err(AttachError::NoArena { .. }) => {
                let path = library::install(None).ok().filter(|path| is_readable_in(pid, path));
                let injected = inject::attach(pid, config.max_target_memory, path.as_deref(), config.wait);
                Some(injected.map_err(|error| AttachError::Inject { pid, error })?)
            }
            Err(error) => return Err(error),
        };
        let arena = find::arena(pid)?;
        let lock = lock(pid, &arena)?;
        let map = Arc::new(ArenaMap::open(arena)?);
        let presence = Presence { map, pid, _lock: lock, injected, took: begun.elapsed() };
        presence.await_python();
        Ok(presence)
    }

    fn flags(&self) -> u32 {
        self.map.arena().header().target.flags.load(Ordering::Acquire)
    }

    /// Waits until the allocators of the Python interpreter are hooked or unhooked. Returns false
    /// when the interpreter kept the lock too long.
    fn await_python(&self) -> bool {
        let begun = Instant::now();
        while self.flags() & target_flag::PYTHON_WAITS != 0 {
            if begun.elapsed() > FOR_PYTHON {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Returns the message for the user at the start.
    pub fn greeting(&self) -> String {
        let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        match &self.injected {
            None => format!("attached to {} (not stopped: it was started with the collector)", self.pid),
            Some(injected) => format!(
                "attached to {} in {} (stopped for {})",
                self.pid,
                milliseconds(self.took),
                milliseconds(injected.stopped),
            ),
        }
    }

    /// Lists the allocations without a record in the report of this process.
    pub fn unseen(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let Some(injected) = &self.injected else { return notes };
        let answer = &injected.answer;
        notes.push(
            "attached while it ran: blocks from before are not known (frees of them are counted apart), nor calls through \
             pointers to malloc that it had kept"
                .to_owned(),
        );
        if answer.foreign > 0 {
            notes.push(format!(
                "an allocator other than its first one is called at {}: those blocks are not seen",
                counted(answer.foreign, "place")
            ));
        }
        if answer.refused > 0 {
            notes.push(format!(
                "the calls of malloc could not be changed at {}: those blocks are not seen",
                counted(answer.refused, "place")
            ));
        }
        notes.extend(injected.calls.and_then(of_own_malloc));
        let is_hooked = self.flags() & target_flag::PYTHON_HOOKED != 0;
        match answer.python {
            python::WAITING if !is_hooked => notes.push(
                "Python's own blocks are not seen before the interpreter gives its lock up, which it has not done for 2 s"
                    .to_owned(),
            ),
            python::REFUSED => notes.push("Python's own blocks are not seen: the process may start no thread".to_owned()),
            _ => {}
        }
        notes
    }

    /// Unhooks the process. Returns a message for the user.
    pub fn leave(self) -> Option<String> {
        self.injected.as_ref()?;
        let left = inject::detach(self.pid);
        let is_python_left = self.await_python();
        self.map.give_back();
        // Without an answer the collector is not there any more, as in a process that has ended.
        let is_released = |left: &Result<Option<Injected>, InjectError>| {
            matches!(left, Ok(None | Some(Injected { is_released: true, .. })))
        };
        match left {
            Ok(_) if is_python_left => {
                let is_given_back = is_released(&left) || is_released(&inject::release(self.pid));
                (!is_given_back).then(|| {
                    "the collector's memory stays mapped in the process until the next attach: a thread stayed in its code".to_owned()
                })
            }
            Ok(_) => Some(
                "Python's allocators lead through the collector until the interpreter gives its lock up".to_owned(),
            ),
            Err(InjectError::Gone) => None,
            Err(error) => Some(format!("the process goes on with idle hooks, at a few ns a call: {error}")),
        }
    }
}

/// Describes the unseen calls of a program with a malloc of its own.
fn of_own_malloc(led: Led) -> Option<String> {
    let Led { changed, left } = led;
    let calls = counted(changed as u64, "direct call");
    let seen = format!("the program brings its own malloc: {calls} of it lead to the collector");
    match (changed, left) {
        (_, 0) => None,
        (0, _) => Some(
            "the program brings its own malloc: only calls from its libraries, and through its own tables, are seen"
                .to_owned(),
        ),
        _ => Some(format!("{seen}, {left} do not (inside of the allocator, or out of reach) and are not seen")),
    }
}

/// Fails while another aggregator has a session, or is just leaving. A leaving aggregator still
/// undoes the hooks.
fn refuse_if_taken(pid: u32, arena: &File) -> Result<(), AttachError> {
    drop(lock(pid, arena)?);
    let file = arena.try_clone().map_err(|source| AttachError::System { pid, source })?;
    let map = ArenaMap::open(file)?;
    match session::owner(map.arena()) {
        Some(owner) => Err(AttachError::Session { pid, error: SessionError::Taken { owner } }),
        None => Ok(()),
    }
}

/// Locks an arena. An attached aggregator holds the lock from the first look to the last.
fn lock(pid: u32, arena: &File) -> Result<File, AttachError> {
    let system = |source| AttachError::System { pid, source };
    // A lock belongs to an open file description, so the file is opened anew.
    let path = format!("/proc/self/fd/{}", arena.as_raw_fd());
    let file = File::open(path).map_err(system)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let map = ArenaMap::open(arena.try_clone().map_err(system)?)?;
            let owner = map.arena().header().session.owner_pid.load(Ordering::Relaxed);
            Err(AttachError::Session { pid, error: SessionError::Taken { owner } })
        }
        Err(TryLockError::Error(source)) => Err(system(source)),
    }
}

/// Whether the process and the aggregator find the same file at a path. The process may have
/// another root.
fn is_readable_in(pid: u32, path: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino())).ok();
    let there = PathBuf::from(format!("/proc/{pid}/root{}", path.display()));
    identity(path).is_some_and(|own| identity(&there) == Some(own))
}
