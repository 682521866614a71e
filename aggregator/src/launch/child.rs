//! Starts the command with the collector and the arena. Everything else is as without Heapline.
//!
//! The environment keeps its order and bytes. LD_PRELOAD is changed in place, or added behind the
//! last entry. The arena's variable follows at the end. The collector undoes both changes.
//! `std::process::Command` is not used, because it would sort the environment.

use super::inherited;
use crate::base::sys;
use crate::session::arena_map::ArenaMap;
use heapline_shared_format::arena::ENV_ARENA;
use heapline_shared_format::tree::ENV_TREE;
use std::ffi::{CStr, CString, OsStr, OsString, c_char};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr;

const PRELOAD: &[u8] = b"LD_PRELOAD=";
/// Limit of the arena's descriptor. Programs that use select() or a fixed table expect descriptors
/// below this limit.
const HIGHEST_FD: u64 = 1024;

/// Reasons why the command does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system refused before there was a command.
    #[error("cannot {what}: {source}")]
    System {
        /// The step.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// An argument contains a zero byte.
    #[error("an argument of the command contains a zero byte")]
    ZeroByte,
    /// exec refused.
    #[error("cannot run {command:?}: {source}")]
    Exec {
        /// The command.
        command: OsString,
        /// The error of the system.
        source: io::Error,
    },
}

/// A command ready to start.
pub struct Command {
    name: OsString,
    arguments: CStrings,
    environment: CStrings,
    /// The arena's descriptor in this process, and its descriptor in the command.
    arena: Option<(RawFd, RawFd)>,
}

/// Additions to a command's environment.
pub enum Handed<'a> {
    /// The collector, and the arena made for the collector.
    Arena {
        /// Path of the library.
        collector: &'a Path,
        /// The arena.
        map: &'a ArenaMap,
    },
    /// The collector for child programs of the command, and the way to the aggregator as text.
    Way {
        /// Path of the library.
        collector: &'a Path,
        /// The value of [`ENV_TREE`].
        way: String,
    },
    /// No additions.
    Nothing,
}

/// A null-terminated list of C strings, in the form for exec.
struct CStrings {
    /// Owners of the strings behind the pointers.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStrings {
    fn new(strings: Vec<CString>) -> CStrings {
        let ends = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]);
        CStrings { pointers: ends.collect(), _strings: strings }
    }
}

impl Command {
    /// Prepares `command` (name and arguments) to run with the additions in `handed`.
    pub fn new(command: &[OsString], handed: &Handed<'_>) -> Result<Command, StartError> {
        let arguments = command.iter().map(|argument| CString::new(argument.as_bytes()));
        let arguments = arguments.collect::<Result<Vec<_>, _>>().map_err(|_| StartError::ZeroByte)?;
        let inherited = inherited_environment();
        let (environment, arena) = match handed {
            Handed::Arena { collector, map } => {
                let (variable, arena) = arena_variable(map)?;
                (environment(&inherited, collector.as_os_str(), &variable), Some(arena))
            }
            Handed::Way { collector, way } => {
                (environment(&inherited, collector.as_os_str(), &format!("{ENV_TREE}={way}")), None)
            }
            Handed::Nothing => (inherited, None),
        };
        Ok(Command {
            name: command.first().cloned().unwrap_or_default(),
            arguments: CStrings::new(arguments),
            environment: CStrings::new(environment),
            arena,
        })
    }

    /// Makes a child in the caller's process group. The child does not begin before
    /// [`Waiting::begin`].
    pub fn fork(&self) -> Result<Waiting, StartError> {
        let system = |what| move |source| StartError::System { what, source };
        let (failure, report) = io::pipe().map_err(system("make a pipe"))?;
        let (go, begin) = io::pipe().map_err(system("make a pipe"))?;
        let mask = block_signals();
        // SAFETY: until exec or its end, the child calls only async-signal-safe functions, on
        // memory prepared before the fork.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            self.exec(report.as_raw_fd(), go.as_raw_fd(), begin.as_raw_fd());
        }
        unblock_signals(&mask);
        sys::check(pid).map_err(system("start a process"))?;
        Ok(Waiting { pid, name: self.name.clone(), failure, begin })
    }

    /// Runs the child's part: waits for the parent, then becomes the command.
    fn exec(&self, report: RawFd, go: RawFd, begin: RawFd) -> ! {
        inherited::restore();
        // SAFETY:
        // 1. The calls take valid descriptors.
        // 2. The lists are null-terminated and outlive the call.
        // 3. The child ends in exec or in _exit.
        //
        // No process writes to `begin`: the pipe is closed when the command may begin, or when the
        // parent is gone.
        unsafe {
            libc::close(begin);
            let mut nothing = 0u8;
            while libc::read(go, (&raw mut nothing).cast(), 1) == -1 && *libc::__errno_location() == libc::EINTR {}
            if self.arena.is_none_or(|(fd, at)| libc::dup2(fd, at) != -1) {
                let (arguments, environment) = (&self.arguments.pointers, &self.environment.pointers);
                libc::execvpe(arguments[0], arguments.as_ptr(), environment.as_ptr());
            }
            let errno = (*libc::__errno_location()).to_ne_bytes();
            libc::write(report, errno.as_ptr().cast(), errno.len());
            libc::_exit(127)
        }
    }
}

/// A child that waits to become the command.
pub struct Waiting {
    pid: libc::pid_t,
    name: OsString,
    failure: PipeReader,
    begin: PipeWriter,
}

impl Waiting {
    /// Returns the process id of the child.
    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Lets the child begin. Returns when exec has succeeded or failed.
    pub fn begin(self) -> Result<(), StartError> {
        let Waiting { pid, name, mut failure, begin } = self;
        drop(begin);
        let mut errno = [0; 4];
        // exec closes the pipe, and so does the end of a child killed earlier. A child with a
        // failed exec is reaped here.
        match failure.read_exact(&mut errno) {
            Err(_) => Ok(()),
            Ok(()) => {
                // SAFETY: `waitpid` waits for a child of this process, and the null pointer asks
                // for no status.
                unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
                let source = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
                Err(StartError::Exec { command: name, source })
            }
        }
    }
}

/// Returns the variable with the arena's name, and the arena's descriptors in this process and in
/// the command.
fn arena_variable(map: &ArenaMap) -> Result<(String, (RawFd, RawFd)), StartError> {
    let at = free_descriptor().map_err(|source| StartError::System { what: "hand the arena on", source })?;
    let file = map.file();
    let found = file.metadata().map_err(|source| StartError::System { what: "inspect the arena", source })?;
    Ok((format!("{ENV_ARENA}={at}:{}:{}", found.dev(), found.ino()), (file.as_raw_fd(), at)))
}

fn inherited_environment() -> Vec<CString> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut entries = Vec::new();
    // SAFETY: libc's list ends with null and consists of C strings. Nothing in this program changes
    // the list.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            entries.push(CStr::from_ptr(*entry).to_owned());
            entry = entry.add(1);
        }
    }
    entries
}

/// Returns `inherited` with two changes: the collector stands in front of the preloaded libraries,
/// and the collector's variable at the end.
fn environment(inherited: &[CString], collector: &OsStr, variable: &str) -> Vec<CString> {
    let ours = [ENV_ARENA, ENV_TREE].map(|name| [name.as_bytes(), b"="].concat());
    let mut entries: Vec<Vec<u8>> = inherited.iter().map(|entry| entry.as_bytes().to_vec()).collect();
    // A variable left by an earlier run would hide the new variable.
    entries.retain(|entry| !ours.iter().any(|name| entry.starts_with(name)));
    match entries.iter_mut().find(|entry| entry.starts_with(PRELOAD)) {
        Some(entry) => *entry = [PRELOAD, collector.as_bytes(), b":", &entry[PRELOAD.len()..]].concat(),
        None => entries.push([PRELOAD, collector.as_bytes()].concat()),
    }
    entries.push(variable.as_bytes().to_vec());
    // No entry has a zero byte: all were C strings, or paths and numbers.
    entries.into_iter().filter_map(|entry| CString::new(entry).ok()).collect()
}

/// Returns the highest free and allowed descriptor.
fn free_descriptor() -> io::Result<RawFd> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the write.
    sys::check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    let end = RawFd::try_from(limit.rlim_cur.min(HIGHEST_FD)).unwrap_or(RawFd::MAX);
    // SAFETY: F_GETFD only asks whether the descriptor is open.
    let is_free = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } == -1;
    (3..end).rev().find(is_free).ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))
}

fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets are valid for the writes, and zeros are a valid set if a call fails.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

fn unblock_signals(mask: &libc::sigset_t) {
    // SAFETY: `mask` is a valid signal set, and was in force before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(entries: &[&str]) -> Vec<String> {
        let entries: Vec<CString> = entries.iter().map(|entry| CString::new(*entry).expect("no zero")).collect();
        let changed = environment(&entries, "/c.so".as_ref(), "HEAPLINE_ARENA=9:1:2");
        changed.into_iter().map(|entry| entry.into_string().expect("text")).collect()
    }

    #[test]
    fn the_environment_keeps_its_order_and_the_users_preload() {
        let with = changed(&["Z=1", "LD_PRELOAD=/a.so /b.so", "A=2"]);
        assert_eq!(with, ["Z=1", "LD_PRELOAD=/c.so:/a.so /b.so", "A=2", "HEAPLINE_ARENA=9:1:2"]);
        let without = changed(&["Z=1", "HEAPLINE_ARENA=stale", "not an assignment"]);
        assert_eq!(without, ["Z=1", "not an assignment", "LD_PRELOAD=/c.so", "HEAPLINE_ARENA=9:1:2"]);
    }
}
