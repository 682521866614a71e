//! The library that the loader brings into the target: the exported symbols, and nothing else.
//!
//! Each entry is a few instructions that hand the hook what only the entry knows: where its return
//! address lies, and rbp. It then jumps, so no frame of ours stands between the caller and the
//! hook.
#![no_std]

mod attach;
mod cxx;
mod direct;
mod entry;
mod exec;
mod loader;
mod malloc;
mod mappings;
mod memory;

use heapline_collector::{fail, fork, inner, preloaded, real, start, thread};
use heapline_collector::preloaded::Preloaded;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail::panicked()
}

/// Starts the collector before `main`: also in programs that never allocate, so that an aggregator
/// can find it, and before the program can have a signal handler that might interrupt the start.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = {
    extern "C" fn start() {
        if attach::is_injected() {
            // The aggregator calls when the loader has let go of its locks.
            real::come_later();
            return;
        }
        real::prepare();
        let _ = start::get_or_start(thread::stack_pointer());
        heapline_collector::attach::begin_preloaded();
        inner::look_at_start();
        fork::watch();
    }
    start
};

/// For a collector that the program carries in itself.
#[unsafe(export_name = "heapline_preloaded")]
pub static PRELOADED: &Preloaded = &preloaded::PRELOADED;
