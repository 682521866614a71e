//! The library brought into the target by the loader: the exported symbols, and nothing else.
//!
//! Each entry is a few instructions that add data known only to the entry: the place of the return
//! address, and the base pointer. The entry then jumps, so no frame of the collector stands between
//! the caller and the hook.
#![no_std]

mod arch;
mod attach;
mod cxx;
mod entry;
mod exec;
mod loader;
mod malloc;
mod mappings;

use heapline_collector::preloaded::Preloaded;
use heapline_collector::{fail, fork, inner, preloaded, real, start, thread};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail::panicked()
}

/// Starts the collector before `main`, for two reasons:
///
/// 1. An aggregator can find the collector also in a program that never allocates.
/// 2. The program cannot have a signal handler yet, which might interrupt the start.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = {
    extern "C" fn start() {
        if attach::is_injected() {
            // The aggregator calls when the loader has released its locks.
            real::come_later();
            return;
        }
        real::prepare();
        let _ = start::get_or_start(thread::stack_pointer());
        heapline_collector::attach::begin_preloaded();
        // Before an allocator that is asked registers its own handlers of forks.
        fork::watch();
        inner::look_at_start();
    }
    start
};

/// The exported data for a collector embedded in the program.
#[unsafe(export_name = "heapline_preloaded")]
pub static PRELOADED: &Preloaded = &preloaded::PRELOADED;
