//! The library that the loader brings into the target: the exported symbols, and nothing else.
//!
//! Each entry is a few instructions that hand the hook what only the entry knows: where its return address lies, and
//! rbp. It then jumps, so no frame of ours stands between the caller and the hook.
#![no_std]

mod attach;
mod cxx;
mod direct;
mod entry;
mod exec;
mod malloc;
mod mappings;
mod memory;

use core::ffi::{c_int, c_ulong, c_void};
use heapline_collector::joint::{self, Preloaded};
use heapline_collector::{fail, fork, loader, process, real, thread};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail::panicked()
}

/// Starts the collector before `main`: also in programs that never allocate, so that an aggregator can find it, and
/// before the program can have a signal handler that might interrupt the start.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = {
    extern "C" fn start() {
        if attach::is_injected() {
            // The aggregator calls when the loader has let go of its locks.
            real::come_later();
            return;
        }
        let _ = real::malloc_address();
        let _ = process::get_or_start(thread::stack_pointer());
        fork::watch();
    }
    start
};

/// For a collector that the program carries in itself.
#[unsafe(export_name = "heapline_preloaded")]
pub static PRELOADED: &Preloaded = &joint::PRELOADED;

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlclose(handle: *mut c_void) -> c_int {
    // SAFETY: passed on.
    unsafe { loader::dlclose(handle) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    // SAFETY: passed on.
    unsafe { loader::mlockall(flags) }
}

/// # Safety
/// As the C function, whose variable arguments are at most four words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    // SAFETY: passed on.
    unsafe { loader::prctl(option, a, b, c, d) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fork() -> c_int {
    // SAFETY: passed on.
    unsafe { heapline_collector::fork::fork() }
}
