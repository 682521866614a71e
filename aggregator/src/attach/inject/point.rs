//! Finds a safe point: a thread whose stack shows no lock of the allocator or the loader.
//!
//! The rule is strict:
//! - The innermost functions may be waiting functions of the C library ([`super::waits`]), or code
//!   outside of the C library.
//! - Further out, the C library may have two kinds of code: the start of threads and programs, and
//!   functions that only call the program back.
//! - No frame may belong to the loader, an allocator, the collector or a signal handler.

use super::entries::Candidates;
use super::ptrace::{self, Stop};
use super::waits::{self, Wait};
use super::{InjectError, Place};
use crate::arch::registers::{self, Registers};
use crate::process::ptrace::{is_ours, state};
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Limit for a thread to stop. A sleeping or running thread stops at once.
const TO_STOP: Duration = Duration::from_millis(20);
/// First round with attempts at running threads.
const RUNNING_ROUND: u32 = 1;

/// A thread stopped at a safe point.
pub struct Stopped {
    pub tid: u32,
    pub registers: Registers,
    pub since: Instant,
}

/// Reasons why a thread is not at a safe point.
pub enum NotHere {
    /// Another thread may be at a safe point.
    Not(String),
    /// No thread will be at a safe point.
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

/// Checks that the process is not stopped by a signal.
pub fn check(pid: u32) -> Result<(), InjectError> {
    match state(pid, pid) {
        Some('T') => Err(is_stopped()),
        _ => Ok(()),
    }
}

/// Stops a thread, and keeps the thread stopped at a safe point. `round` counts the attempts at all
/// threads.
pub fn stop_at(tid: u32, place: &Place<'_>, round: u32) -> Result<Stopped, NotHere> {
    let pid = place.map.pid;
    match state(pid, tid) {
        Some('D') => return Err(NotHere::Not(format!("thread {tid} is in uninterruptible sleep"))),
        Some('R') if round < RUNNING_ROUND => return Err(NotHere::Not(format!("thread {tid} was running"))),
        Some('T') => return Err(NotHere::Error(is_stopped())),
        Some('Z' | 'X') | None => return Err(NotHere::Not("it has ended".to_owned())),
        Some(_) => {}
    }
    match ptrace::seize(tid) {
        // A thread that did not stop in time earlier is still traced by this process.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && is_ours(pid, tid) => {}
        seized => seized?,
    }
    let since = Instant::now();
    ptrace::interrupt(tid)?;
    let registers = stopped(tid)?;
    match judge(&registers, place) {
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

/// Waits for the requested stop. Earlier signals are passed on.
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

/// Checks that a thread with these registers is at a safe point. The error is the reason against
/// the thread.
pub fn judge(registers: &Registers, place: &Place<'_>) -> Result<(), String> {
    let &Place { map, memory, loader, survey } = place;
    if !registers::is_native(registers) {
        return Err("it runs 32-bit code".to_owned());
    }
    let mut stack = loader.stacks.walk(map, memory, registers)?;
    // A return address may lie behind the last instruction of its function.
    stack.iter_mut().skip(1).for_each(|address| *address = address.wrapping_sub(1));
    let collector = map.collector().and_then(|base| map.object_at(base));
    let is_in_allocator = |address| {
        let is_library = loader.allocators.iter().chain(&collector).any(|range| range.contains(address));
        is_library || survey.is_some_and(|survey| survey.is_in_allocator(address))
    };
    if stack.iter().any(|&address| loader.interpreter.is_some_and(|range| range.contains(address))) {
        return Err("it is in the loader".to_owned());
    }
    if stack.iter().any(|&address| is_in_allocator(address)) {
        return Err("it is in the allocator".to_owned());
    }
    let is_libc: Vec<bool> = stack.iter().map(|&address| loader.is_in_c_library(address)).collect();
    let functions = |range: Range<usize>| -> Vec<Option<Candidates>> {
        stack[range].iter().map(|&address| loader.candidates(address)).collect()
    };
    if !outer_ones(&is_libc).into_iter().all(|callers| waits::call_back(&functions(callers))) {
        return Err("it was called by the C library".to_owned());
    }
    match is_libc.iter().take_while(|&&is_libc| is_libc).count() {
        0 if loader.has_own_malloc => Err("it may be in the program's own allocator".to_owned()),
        0 => Ok(()),
        waiting => {
            let (system_call, result) = registers::system_call(registers);
            Wait { functions: &functions(0..waiting), system_call, result }.check()
        }
    }
}

/// Lists the runs of C library frames between the innermost functions and the code that starts a
/// thread or the program.
fn outer_ones(is_libc: &[bool]) -> Vec<Range<usize>> {
    let inner = is_libc.iter().take_while(|&&is| is).count();
    // The caller of the C library is the program's `_start`, outside of the C library.
    let root = match is_libc {
        [rest @ .., false] if rest.last() == Some(&true) => rest,
        all => all,
    };
    let outermost = root.iter().rev().take_while(|&&is| is).count();
    let end = root.len().saturating_sub(outermost).max(inner);
    let mut begin = inner;
    let mut found = Vec::new();
    for run in is_libc[inner..end].chunk_by(|a, b| a == b) {
        if run[0] {
            found.push(begin..begin + run.len());
        }
        begin += run.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_may_be_at_both_ends() {
        let outer = |text: &str| outer_ones(&text.chars().map(|frame| frame == 'c').collect::<Vec<_>>());
        for fine in ["ppc", "cppc", "ccppccp", "pp", "pcp", "cpc", "p", "cccp", "ccc", ""] {
            assert!(outer(fine).is_empty(), "{fine}");
        }
        for (text, only) in [("cpcpc", 2..3), ("pcppc", 1..2), ("ppcppccp", 2..3), ("cpcppp", 2..3)] {
            assert_eq!(outer(text), std::slice::from_ref(&only), "{text}");
        }
        assert_eq!(outer("cpccpcpccp"), [2..4, 5..6]);
    }
}
