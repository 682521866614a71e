//! Failure of the collector itself.
//!
//! Code with a possible panic (every parser) runs under [`guard`]. A panic there cannot unwind,
//! since the crate is built with `panic = "abort"`. The panic handler instead returns to the guard
//! by a saved stack pointer, like a `longjmp`, and tracing ends. Nothing under a guard owns a value
//! that needs dropping.
//!
//! Hot paths run without a guard, and contain nothing with a possible panic.

use crate::arch::stack;
use crate::platform::tls;
use crate::process;
use core::sync::atomic::{AtomicU8, Ordering};
use heapline_shared_format::arena::end_cause;

/// Runs `work`. When `work` panics, tracing of the process ends and the result is `None`.
///
/// `work` must own nothing that needs dropping. `work` must leave nothing half done that the rest
/// of the collector relies on after the end of tracing. A guard inside a guard leaves panics to the
/// outer guard.
pub fn guard<R: Copy, F: FnOnce() -> R>(work: F) -> Option<R> {
    struct Job<F, R> {
        work: Option<F>,
        result: Option<R>,
    }
    extern "C" fn run<R: Copy, F: FnOnce() -> R>(job: *mut u8) {
        // SAFETY: `guard` passes a pointer to a job of these types, alive during the call.
        let job = unsafe { &mut *job.cast::<Job<F, R>>() };
        if let Some(work) = job.work.take() {
            job.result = Some(work());
        }
    }
    if tls::recovery() != 0 {
        return Some(work());
    }
    let mut saved = 0usize;
    let mut job = Job { work: Some(work), result: None };
    // The panic handler finds the stack pointer through the thread's word, which holds the address
    // of `saved`.
    tls::set_recovery((&raw mut saved).addr());
    // SAFETY: `run` matches the type of the job, and both outlive the call.
    let panicked = unsafe { stack::guarded(run::<R, F>, (&raw mut job).cast(), &raw mut saved) } != 0;
    tls::set_recovery(0);
    if panicked { None } else { job.result }
}

/// The panic handler: ends tracing and returns to the outermost guard.
pub fn panicked() -> ! {
    process::end(end_cause::PANIC);
    let saved = tls::recovery() as *const usize;
    if !saved.is_null() {
        // SAFETY: the guard that set the word is still on the stack, and has saved the stack
        // pointer there.
        unsafe { stack::return_to(saved.read()) }
    }
    // No code outside of a guard can panic. Should such code panic, there is no caller to return
    // to.
    loop {
        core::hint::spin_loop();
    }
}

/// A cold path in which tests can cause a panic, by `HEAPLINE_FAULT=name` in the target's
/// environment.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "named after the paths")]
pub enum Site {
    Init = 1,
    Thread,
    Segment,
    Rule,
    Stack,
    Module,
    Walk,
    Code,
}

const SITES: [(&[u8], Site); 8] = [
    (b"init", Site::Init),
    (b"thread", Site::Thread),
    (b"segment", Site::Segment),
    (b"rule", Site::Rule),
    (b"stack", Site::Stack),
    (b"module", Site::Module),
    (b"walk", Site::Walk),
    (b"code", Site::Code),
];

static FAULT: AtomicU8 = AtomicU8::new(0);

/// Arms the site with this name. An unknown name arms none.
pub fn arm(name: &[u8]) {
    if let Some((_, site)) = SITES.iter().find(|(n, _)| *n == name) {
        FAULT.store(*site as u8, Ordering::Relaxed);
    }
}

/// Panics when the site is armed.
pub fn point(site: Site) {
    assert!(FAULT.load(Ordering::Relaxed) != site as u8, "armed by HEAPLINE_FAULT");
}
