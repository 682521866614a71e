//! ptrace(2): one function for each used request.

use super::beats;
use crate::arch::registers::{MOST_STATE_BYTES, Registers, STATE_KIND};
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

const NT_PRSTATUS: libc::c_int = 1;
const SIGMASK_BYTES: usize = 8;
/// Value from `<linux/ptrace.h>`.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// Reasons why a traced thread has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The thread was interrupted, or the process is stopped by a signal.
    Event {
        /// The signal that stopped the process; SIGTRAP for an interruption.
        signal: libc::c_int,
    },
    /// The thread enters or leaves a system call.
    SystemCall,
    /// The thread is about to get a signal.
    Signal(libc::c_int),
    /// The thread has ended.
    Gone,
}

/// Lists the threads of a process, the first thread first.
pub fn threads(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut tids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    tids.sort_by_key(|&tid| (tid != pid, tid));
    tids
}

/// Whether this thread or process traces the thread `tid`.
pub fn is_ours(pid: u32, tid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).and_then(|id| id.trim().parse().ok());
    tracer == Some(crate::base::sys::gettid()) || tracer == Some(std::process::id())
}

/// Returns the state letter of a thread in `/proc`.
pub fn state(pid: u32, tid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn id(tid: u32) -> libc::pid_t {
    libc::pid_t::try_from(tid).unwrap_or(libc::pid_t::MAX)
}

fn request(request: libc::c_uint, tid: u32, address: usize, data: usize) -> io::Result<()> {
    beats::beat();
    // SAFETY: the caller passes an address and data that the request may read or write.
    let result = unsafe { libc::ptrace(request, id(tid), address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Begins to trace a thread. The thread goes on.
pub fn seize(tid: u32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize)
}

/// Makes a thread stop, or makes a stopped thread stop again before the thread next runs its own
/// code. A thread that is ending is gone.
pub fn interrupt(tid: u32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(|error| match error.raw_os_error() {
        Some(libc::EIO) => io::Error::from_raw_os_error(libc::ESRCH),
        _ => error,
    })
}

/// Lets a stopped thread run until its next stop, and delivers a signal.
pub fn resume(tid: u32, signal: libc::c_int) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, usize::try_from(signal).unwrap_or(0))
}

/// Lets a stopped thread run until the thread enters or leaves a system call, and delivers a
/// signal.
pub fn resume_to_system_call(tid: u32, signal: libc::c_int) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, usize::try_from(signal).unwrap_or(0))
}

/// Ends the tracing of a stopped thread. The thread goes on, and gets the signal.
pub fn detach(tid: u32, signal: libc::c_int) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, usize::try_from(signal).unwrap_or(0))
}

/// Reads the registers of a stopped thread.
pub fn registers(tid: u32) -> io::Result<Registers> {
    let mut registers = MaybeUninit::<Registers>::zeroed();
    let mut vector = libc::iovec { iov_base: registers.as_mut_ptr().cast(), iov_len: size_of::<Registers>() };
    request(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS as usize, (&raw mut vector).addr())?;
    if vector.iov_len != size_of::<Registers>() {
        return Err(io::Error::other("it runs in 32-bit mode"));
    }
    // SAFETY: the kernel has filled the whole structure.
    Ok(unsafe { registers.assume_init() })
}

/// Sets all registers of a stopped thread at once.
pub fn set_registers(tid: u32, registers: &Registers) -> io::Result<()> {
    let mut copy = *registers;
    let mut vector = libc::iovec { iov_base: (&raw mut copy).cast(), iov_len: size_of::<Registers>() };
    request(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS as usize, (&raw mut vector).addr())
}

/// Reads the floating-point and vector registers of a stopped thread.
pub fn extended_state(tid: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; MOST_STATE_BYTES];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    request(libc::PTRACE_GETREGSET, tid, STATE_KIND as usize, (&raw mut vector).addr())?;
    bytes.truncate(vector.iov_len);
    Ok(bytes)
}

/// Sets the floating-point and vector registers of a stopped thread.
pub fn set_extended_state(tid: u32, state: &[u8]) -> io::Result<()> {
    let mut vector = libc::iovec { iov_base: state.as_ptr().cast_mut().cast(), iov_len: state.len() };
    request(libc::PTRACE_SETREGSET, tid, STATE_KIND as usize, (&raw mut vector).addr())
}

/// Reads the mask of blocked signals of a stopped thread.
pub fn signal_mask(tid: u32) -> io::Result<u64> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, tid, SIGMASK_BYTES, (&raw mut mask).addr())?;
    Ok(mask)
}

/// Sets the mask of blocked signals of a stopped thread.
pub fn set_signal_mask(tid: u32, mask: u64) -> io::Result<()> {
    request(libc::PTRACE_SETSIGMASK, tid, SIGMASK_BYTES, (&raw const mask).addr())
}

/// Whether a thread stopped at a system call is about to enter the call.
pub fn enters_system_call(tid: u32) -> io::Result<bool> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let bytes = size_of::<libc::ptrace_syscall_info>();
    request(libc::PTRACE_GET_SYSCALL_INFO, tid, bytes, info.as_mut_ptr().addr())?;
    // SAFETY: zeros are valid, and the kernel has filled the first fields.
    Ok(unsafe { info.assume_init() }.op == libc::PTRACE_SYSCALL_INFO_ENTRY)
}

/// Reads the programs of a stopped thread's seccomp filters, the last filter first.
pub fn seccomp_filters(tid: u32) -> io::Result<Vec<Vec<libc::sock_filter>>> {
    /// Longest program accepted by the kernel.
    const LONGEST: usize = 4096;
    let mut filters = Vec::new();
    loop {
        let mut program = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; LONGEST];
        // SAFETY: `program` has room for the longest program accepted by the kernel, so the kernel
        // writes within its bounds.
        let length = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, id(tid), filters.len(), program.as_mut_ptr()) };
        match usize::try_from(length) {
            Ok(length) => {
                program.truncate(length);
                filters.push(program);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::ENOENT) { Ok(filters) } else { Err(error) };
            }
        }
    }
}

/// Waits for the thread's next stop. Returns none when the time is over.
pub fn wait(tid: u32, limit: Duration) -> io::Result<Option<Stop>> {
    const EVENT_STOP: libc::c_int = 128;
    const NAP: Duration = Duration::from_micros(50);
    /// Duration of the busy wait. A stop nearly always comes within microseconds.
    const AWAKE: Duration = Duration::from_micros(200);
    let begun = Instant::now();
    loop {
        beats::beat();
        let mut status = 0;
        // SAFETY: `status` is valid for the write.
        let waited = unsafe { libc::waitpid(id(tid), &raw mut status, libc::__WALL | libc::WNOHANG) };
        match waited {
            -1 => {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::ECHILD) { Ok(Some(Stop::Gone)) } else { Err(error) };
            }
            0 if begun.elapsed() >= limit => return Ok(None),
            0 if begun.elapsed() > AWAKE => std::thread::sleep(NAP),
            0 => std::thread::yield_now(),
            _ if !libc::WIFSTOPPED(status) => return Ok(Some(Stop::Gone)),
            _ => {
                let signal = libc::WSTOPSIG(status);
                return Ok(Some(match status >> 16 {
                    EVENT_STOP => Stop::Event { signal },
                    _ if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
                    _ => Stop::Signal(signal),
                }));
            }
        }
    }
}
