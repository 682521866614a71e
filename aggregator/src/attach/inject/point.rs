//! A safe point: a thread that, as its stack shows, holds no lock of the allocator or the loader.
//!
//! The rule is strict. Innermost may be a function of the C library that only waits or passes bytes ([`WAITS`], and
//! [`STREAMS`] while it reads or writes), or code that is not the C library's. Further out nothing may be the C library's
//! but the code that starts threads and programs; nothing anywhere may be the loader's, an allocator's or the
//! collector's, nor run in a signal handler.

use super::InjectError;
use super::map::{Loader, Map};
use super::memory::Memory;
use super::ptrace::{self, Registers, Stop};
use std::io;
use std::time::{Duration, Instant};

/// How long a thread gets to stop: one that sleeps or runs does at once.
const TO_STOP: Duration = Duration::from_millis(20);
/// From this round on threads are tried that run their own code.
const RUNNING_ROUND: u32 = 1;
/// Code segment of 64-bit programs.
pub const CODE_64: u64 = 0x33;

/// Functions that hold no lock of the C library while they wait.
const WAITS: &[&str] = &[
    "accept",
    "accept4",
    "clock_nanosleep",
    "connect",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "fdatasync",
    "flock",
    "fsync",
    "getrandom",
    "io_getevents",
    "ioctl",
    "mq_receive",
    "mq_timedreceive",
    "msgrcv",
    "nanosleep",
    "pause",
    "poll",
    "ppoll",
    "pread",
    "pread64",
    "preadv",
    "pselect",
    "pthread_clockjoin_np",
    "pthread_cond_clockwait",
    "pthread_cond_timedwait",
    "pthread_cond_wait",
    "pthread_join",
    "pthread_timedjoin_np",
    "pwrite",
    "pwrite64",
    "pwritev",
    "read",
    "readv",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sched_yield",
    "select",
    "sem_clockwait",
    "sem_timedwait",
    "sem_wait",
    "semop",
    "semtimedop",
    "send",
    "sendfile",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "sigpause",
    "sigsuspend",
    "sigtimedwait",
    "sigwait",
    "sigwaitinfo",
    "sleep",
    "splice",
    "syscall",
    "usleep",
    "wait",
    "wait3",
    "wait4",
    "waitid",
    "waitpid",
    "write",
    "writev",
];
/// Functions of streams, which hold their stream's lock.
const STREAMS: &[&str] = &[
    "fflush",
    "fgetc",
    "fgets",
    "fputs",
    "fread",
    "fwrite",
    "getc",
    "getchar",
    "getdelim",
    "getline",
    "puts",
    "fgets_unlocked",
    "fread_unlocked",
    "getc_unlocked",
    "fputs_unlocked",
    "fwrite_unlocked",
    "fflush_unlocked",
];

/// A thread that is stopped at a safe point.
pub struct Stopped {
    pub tid: u32,
    pub registers: Registers,
    pub since: Instant,
}

/// Why a thread is not at one.
pub enum NotHere {
    /// Another may be.
    Not(String),
    /// None will be.
    Error(InjectError),
}

impl From<io::Error> for NotHere {
    fn from(error: io::Error) -> NotHere {
        match error.raw_os_error() {
            Some(libc::ESRCH) => NotHere::Not("it has ended".to_owned()),
            _ => NotHere::Error(InjectError::Ptrace(error)),
        }
    }
}

/// Whether the process runs at all.
pub fn check(pid: u32) -> Result<(), InjectError> {
    match state(pid, pid) {
        Some('T') => Err(is_stopped()),
        _ => Ok(()),
    }
}

/// Stops a thread, and keeps it stopped if it is at a safe point. `round` counts the attempts at all threads.
pub fn stop_at(tid: u32, map: &Map, memory: &Memory, loader: &Loader, round: u32) -> Result<Stopped, NotHere> {
    let pid = map.pid;
    match state(pid, tid) {
        Some('D') => return Err(NotHere::Not(format!("thread {tid} is in uninterruptible sleep"))),
        Some('R') if round < RUNNING_ROUND => return Err(NotHere::Not(format!("thread {tid} was running"))),
        Some('T') => return Err(NotHere::Error(is_stopped())),
        Some('Z' | 'X') | None => return Err(NotHere::Not("it has ended".to_owned())),
        Some(_) => {}
    }
    match ptrace::seize(tid) {
        // One that did not stop in time earlier is still ours.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && is_ours(pid, tid) => {}
        seized => seized?,
    }
    let since = Instant::now();
    ptrace::interrupt(tid)?;
    let registers = stopped(tid)?;
    match judge(&registers, map, memory, loader) {
        Ok(()) => Ok(Stopped { tid, registers, since }),
        Err(why) => {
            ptrace::detach(tid, 0)?;
            Err(NotHere::Not(format!("thread {tid}: {why}")))
        }
    }
}

fn is_stopped() -> InjectError {
    let reason = "it is stopped by a signal: let it go on (kill -CONT), then attach".to_owned();
    InjectError::Refused { what: "finding a thread that runs", reason }
}

/// Whether this thread traces it.
pub fn is_ours(pid: u32, tid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).and_then(|id| id.trim().parse().ok());
    tracer == Some(crate::sys::gettid()) || tracer == Some(std::process::id())
}

/// The letter that `/proc` has for what a thread does.
pub fn state(pid: u32, tid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits for the stop that was asked for; signals that come first are passed on.
fn stopped(tid: u32) -> Result<Registers, NotHere> {
    loop {
        match ptrace::wait(tid, TO_STOP)? {
            None => return Err(NotHere::Not(format!("thread {tid} is in the kernel"))),
            Some(Stop::Gone) => return Err(NotHere::Not("it has ended".to_owned())),
            Some(Stop::Event { signal: libc::SIGTRAP }) => return Ok(ptrace::registers(tid)?),
            Some(Stop::Event { .. }) => {
                ptrace::detach(tid, 0)?;
                return Err(NotHere::Error(is_stopped()));
            }
            Some(Stop::Signal(signal)) => ptrace::resume(tid, signal)?,
            Some(Stop::SystemCall) => ptrace::resume(tid, 0)?,
        }
    }
}

/// Whether a thread with these registers is at a safe point; else why not.
pub fn judge(registers: &Registers, map: &Map, memory: &Memory, loader: &Loader) -> Result<(), String> {
    if registers.cs != CODE_64 {
        return Err("it runs 32-bit code".to_owned());
    }
    let addresses = loader.stacks.walk(map, memory, registers)?;
    let collector = map.collector().and_then(|base| map.object_at(base));
    let mut kinds = Vec::with_capacity(addresses.len());
    for (depth, &address) in addresses.iter().enumerate() {
        let inside = address.wrapping_sub(u64::from(depth > 0));
        if loader.interpreter.contains(inside) {
            return Err("it is in the loader".to_owned());
        }
        if loader.allocators.iter().chain(&collector).any(|range| range.contains(inside)) {
            return Err("it is in the allocator".to_owned());
        }
        kinds.push(loader.libc.contains(inside));
    }
    if outer_ones(&kinds) {
        return Err("it was called by the C library".to_owned());
    }
    let waiting = kinds.iter().take_while(|&&is_libc| is_libc).count();
    if waiting == 0 {
        let is_known = !loader.has_own_malloc;
        return if is_known { Ok(()) } else { Err("it may be in the program's own allocator".to_owned()) };
    }
    let depth = waiting - 1;
    let names = loader.functions.names_at(addresses[depth].wrapping_sub(u64::from(depth > 0)));
    let is_one_of = |list: &[&str]| names.iter().any(|name| list.contains(&name.as_str()));
    let is_in = |calls: &[i64]| calls.contains(&registers.orig_rax.cast_signed());
    let passes_bytes = is_in(&[libc::SYS_read, libc::SYS_write, libc::SYS_writev]);
    if is_one_of(WAITS) || (passes_bytes && is_one_of(STREAMS)) {
        return Ok(());
    }
    Err(format!("it is in {}", names.first().map_or("the C library", |name| name)))
}

/// Whether the C library is somewhere between the innermost functions and the code that starts a thread or the program.
fn outer_ones(is_libc: &[bool]) -> bool {
    let inner = is_libc.iter().take_while(|&&is| is).count();
    // The program's `_start`, which is not the C library's, calls it.
    let root = match is_libc {
        [rest @ .., false] if rest.last() == Some(&true) => rest,
        all => all,
    };
    let outermost = root.iter().rev().take_while(|&&is| is).count();
    let between = inner..root.len().saturating_sub(outermost);
    is_libc.get(between).is_some_and(|between| between.contains(&true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_may_be_at_both_ends_only() {
        let stack = |text: &str| text.chars().map(|frame| frame == 'c').collect::<Vec<_>>();
        for fine in ["ppc", "cppc", "ccppccp", "pp", "pcp", "cpc", "p", "cccp"] {
            assert!(!outer_ones(&stack(fine)), "{fine}");
        }
        for bad in ["cpcpc", "pcppc", "ppcppccp", "cpcppp"] {
            assert!(outer_ones(&stack(bad)), "{bad}");
        }
    }

    #[test]
    fn lists_are_in_order() {
        assert!(WAITS.is_sorted());
    }
}
