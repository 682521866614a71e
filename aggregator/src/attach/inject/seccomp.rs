//! Checks whether a seccomp filter would kill a process for the system calls of the collector.
//!
//! The program of the filter is read from the kernel, and run here for two sets of calls: the calls
//! of the injection, and the later calls of the collector's hooks on any thread.

use super::{InjectError, ptrace};
use crate::arch::system_calls::{ARCHITECTURE, CALLS, CALLS_FOR_OBJECTS};
use std::io;
use std::time::Duration;

const TO_STOP: Duration = Duration::from_secs(1);

/// Fails for a process with a filter that forbids a needed call or cannot be read. `finds_objects`
/// is that of the process's [`super::loader::Loader`].
pub fn check(pid: u32, finds_objects: bool) -> Result<(), InjectError> {
    let refused = |why: &str| Err(InjectError::Seccomp(why.to_owned()));
    match crate::process::procfs::status(pid, "Seccomp").as_deref() {
        Some("1") => return refused("it is in strict mode"),
        Some("2") => {}
        _ => return Ok(()),
    }
    let filters = match read_filters(pid) {
        Ok(filters) => filters,
        Err(error) => return refused(&format!("the filter cannot be read ({error}): attach as root")),
    };
    let forbidden = forbidden(&filters, if finds_objects { &[] } else { CALLS_FOR_OBJECTS });
    if forbidden.is_empty() {
        return Ok(());
    }
    refused(&format!("it forbids {}; allow these calls, or start it with aggregator run", forbidden.join(", ")))
}

/// Lists the calls stopped by at least one filter: the usual calls, and `more`.
fn forbidden(filters: &[Filter], more: &[(i64, &'static str)]) -> Vec<&'static str> {
    let is_allowed = |number| filters.iter().all(|filter| filter.allows(number));
    CALLS.iter().chain(more).filter(|(number, _)| !is_allowed(*number)).map(|(_, name)| *name).collect()
}

/// Counts the calls forbidden by a filter's program, given in the kernel's layout.
pub fn forbidden_by(program: &[u8]) -> usize {
    let instruction = |bytes: &[u8; 8]| libc::sock_filter {
        code: u16::from_le_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    forbidden(&[Filter(program.as_chunks().0.iter().map(instruction).collect())], CALLS_FOR_OBJECTS).len()
}

/// Reads all filters of the process's first thread. The thread is stopped to read the filters.
fn read_filters(pid: u32) -> io::Result<Vec<Filter>> {
    ptrace::seize(pid)?;
    ptrace::interrupt(pid)?;
    loop {
        match ptrace::wait(pid, TO_STOP)? {
            None => return Err(io::Error::other("its first thread does not stop")),
            Some(ptrace::Stop::Gone) => return Err(io::Error::other("it has ended")),
            Some(ptrace::Stop::Event { .. }) => break,
            Some(ptrace::Stop::Signal(signal)) => ptrace::resume(pid, signal)?,
            Some(ptrace::Stop::SystemCall) => ptrace::resume(pid, 0)?,
        }
    }
    let filters = ptrace::seccomp_filters(pid).map(|programs| programs.into_iter().map(Filter).collect());
    ptrace::detach(pid, 0)?;
    filters
}

/// The program of a filter.
struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// Whether the filter lets a system call pass, or makes the call fail with an error. Both are
    /// harmless. The arguments of the call are taken as 0.
    fn allows(&self, number: i64) -> bool {
        const KILL_PROCESS: u32 = 0x8000_0000;
        const KILL_THREAD: u32 = 0;
        const TRAP: u32 = 0x0003_0000;
        const ACTION: u32 = 0xffff_0000;
        let action = self.run(number) & ACTION;
        !matches!(action, KILL_PROCESS | KILL_THREAD | TRAP)
    }

    /// Returns the answer of the filter. A faulty program answers "kill".
    fn run(&self, number: i64) -> u32 {
        // struct seccomp_data: number, architecture, instruction pointer, six arguments.
        let mut data = [0u32; 16];
        data[0] = u32::try_from(number).unwrap_or(u32::MAX);
        data[1] = ARCHITECTURE;
        let (mut a, mut x, mut scratch) = (0u32, 0u32, [0u32; 16]);
        let mut at = 0usize;
        while let Some(instruction) = self.0.get(at) {
            at += 1;
            let (code, k) = (instruction.code, instruction.k);
            let place = k as usize;
            match code & 7 {
                // BPF_LD: from the call's data, a constant, the scratch memory, or the data's size.
                0 => match code & 0xe0 {
                    0x20 => a = data.get(place / 4).copied().unwrap_or(0),
                    0x00 => a = k,
                    0x60 => a = scratch.get(place).copied().unwrap_or(0),
                    0x80 => a = 64,
                    _ => return 0,
                },
                // BPF_LDX
                1 => match code & 0xe0 {
                    0x00 => x = k,
                    0x60 => x = scratch.get(place).copied().unwrap_or(0),
                    0x80 => x = 64,
                    _ => return 0,
                },
                2 | 3 => match scratch.get_mut(place) {
                    Some(word) => *word = if code & 7 == 2 { a } else { x },
                    None => return 0,
                },
                4 => match calculate(code, a, if code & 8 == 0 { k } else { x }) {
                    Some(result) => a = result,
                    None => return 0,
                },
                5 => {
                    let with = if code & 8 == 0 { k } else { x };
                    let holds = match code & 0xf0 {
                        0x00 => {
                            at = at.saturating_add(place);
                            continue;
                        }
                        0x10 => a == with,
                        0x20 => a > with,
                        0x30 => a >= with,
                        0x40 => a & with != 0,
                        _ => return 0,
                    };
                    at += usize::from(if holds { instruction.jt } else { instruction.jf });
                }
                6 => return if code & 0x18 == 0x10 { a } else { k },
                // BPF_MISC: TXA, else TAX.
                _ => {
                    if code & 0xf8 == 0x80 {
                        a = x;
                    } else {
                        x = a;
                    }
                }
            }
        }
        0
    }
}

fn calculate(code: u16, a: u32, b: u32) -> Option<u32> {
    Some(match code & 0xf0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b)?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.checked_shl(b)?,
        0x70 => a.checked_shr(b)?,
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ b,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0001;
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;

    fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }

    #[test]
    fn a_filter_is_run_as_the_kernel_runs_it() {
        // Another architecture: kill. mmap: an error. futex: kill. All other calls are allowed.
        let filter = Filter(vec![
            op(LOAD, 0, 0, 4),
            op(IF_EQUAL, 1, 0, ARCHITECTURE),
            op(RETURN, 0, 0, 0),
            op(LOAD, 0, 0, 0),
            op(IF_EQUAL, 0, 1, u32::try_from(libc::SYS_mmap).expect("small")),
            op(RETURN, 0, 0, ERRNO),
            op(IF_EQUAL, 0, 1, u32::try_from(libc::SYS_futex).expect("small")),
            op(RETURN, 0, 0, 0x8000_0000),
            op(RETURN, 0, 0, ALLOW),
        ]);
        assert!(filter.allows(libc::SYS_mmap) && filter.allows(libc::SYS_read));
        assert!(!filter.allows(libc::SYS_futex));
    }

    #[test]
    fn a_program_that_goes_wrong_forbids() {
        for wrong in [vec![], vec![op(LOAD, 0, 0, 0)], vec![op(0xff, 0, 0, 0)], vec![op(IF_EQUAL, 200, 200, 0)]] {
            assert!(!Filter(wrong).allows(0));
        }
        // A backward jump is a jump far ahead.
        assert!(!Filter(vec![op(0x05, 0, 0, u32::MAX)]).allows(0));
    }
}
