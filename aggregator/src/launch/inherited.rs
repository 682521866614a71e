//! How signals stood when the process began: what the command must find.
//!
//! Rust's runtime ignores SIGPIPE before `main`, so this is recorded earlier, while the loader
//! initialises the program. exec resets handlers by itself, but neither what is ignored nor the
//! mask.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bit N - 1: signal N was ignored.
static IGNORED: AtomicU64 = AtomicU64::new(0);
/// Bit N - 1: signal N was blocked.
static BLOCKED: AtomicU64 = AtomicU64::new(0);

/// Linux's signals.
const SIGNALS: std::ops::RangeInclusive<libc::c_int> = 1..=64;

#[used]
// SAFETY: the loader calls each entry of this section once, with arguments that the function does
// not take.
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    let (mut ignored, mut blocked) = (0, 0);
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: with a null set the mask is only read, into memory that is valid for the write.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()) };
    for signal in SIGNALS {
        let bit = 1u64 << (signal - 1);
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: with a null action the old one is only read, into memory that is valid for the
        // write; zeros are a valid sigaction and a valid sigset_t should the calls fail.
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

/// Puts dispositions and mask back as they were. For the child between fork and exec:
/// async-signal-safe.
///
/// All signals must be blocked, so that no handler of the parent's runs in the child.
pub fn restore() {
    let (ignored, blocked) = (IGNORED.load(Ordering::Relaxed), BLOCKED.load(Ordering::Relaxed));
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is valid for the write.
    unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
    for signal in SIGNALS {
        let bit = 1u64 << (signal - 1);
        let disposition = if ignored & bit != 0 { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: both dispositions are valid for every signal; the calls fail for SIGKILL, SIGSTOP
        // and libc's own.
        unsafe { libc::signal(signal, disposition) };
        if blocked & bit != 0 {
            // SAFETY: the set was initialised above.
            unsafe { libc::sigaddset(mask.as_mut_ptr(), signal) };
        }
    }
    // SAFETY: the set was initialised above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), ptr::null_mut()) };
}
