//! Records the state of signals at the start of the process. The command must find the same state.
//!
//! Rust's runtime ignores SIGPIPE before `main`. The state is therefore recorded earlier, while the
//! loader initialises the program. exec resets handlers by itself, but keeps ignored signals and
//! the signal mask.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bit N - 1: signal N was ignored.
static IGNORED: AtomicU64 = AtomicU64::new(0);
/// Bit N - 1: signal N was blocked.
static BLOCKED: AtomicU64 = AtomicU64::new(0);

/// Numbers of Linux's signals.
const SIGNALS: std::ops::RangeInclusive<libc::c_int> = 1..=64;

#[used]
// SAFETY: the loader calls each entry of this section once. `record` ignores the arguments of the
// call.
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    let (mut ignored, mut blocked) = (0, 0);
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: with a null set, `pthread_sigmask` only reads the mask, into memory valid for the
    // write.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()) };
    for signal in SIGNALS {
        let bit = 1u64 << (signal - 1);
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: with a null action, `sigaction` only reads the old action, into memory valid for
        // the write. Zeros are a valid sigaction and a valid sigset_t if a call fails.
        unsafe {
            libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
            if action.assume_init_ref().sa_sigaction == libc::SIG_IGN {
                ignored |= bit;
            }
            if libc::sigismember(mask.as_ptr(), signal) == 1 {
                blocked |= bit;
            }
        }
    }
    IGNORED.store(ignored, Ordering::Relaxed);
    BLOCKED.store(blocked, Ordering::Relaxed);
}

/// Restores the dispositions and the mask of signals. The function is async-signal-safe, for the
/// child between fork and exec.
///
/// All signals must be blocked, so that no handler of the parent runs in the child.
pub fn restore() {
    let (ignored, blocked) = (IGNORED.load(Ordering::Relaxed), BLOCKED.load(Ordering::Relaxed));
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is valid for the write.
    unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
    for signal in SIGNALS {
        let bit = 1u64 << (signal - 1);
        let disposition = if ignored & bit != 0 { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: both dispositions are valid for every signal. The call fails for SIGKILL, SIGSTOP
        // and libc's own signals.
        unsafe { libc::signal(signal, disposition) };
        if blocked & bit != 0 {
            // SAFETY: `sigemptyset` has initialised the set.
            unsafe { libc::sigaddset(mask.as_mut_ptr(), signal) };
        }
    }
    // SAFETY: `sigemptyset` has initialised the set.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), ptr::null_mut()) };
}
