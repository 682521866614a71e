//! Stamps.
//!
//! Both clocks wait for all earlier loads: the counter's read does, and the vDSO fences before
//! reading. The stamp of an allocation is therefore later than the load that received the block,
//! and the stamp of a free is later than the load that received the pointer. For one address,
//! stamps follow the order of events, whichever threads took part.

use heapline_shared_format::arch::counter;
use heapline_shared_format::arena::clock;
use heapline_shared_format::event::STAMP_BITS;

/// Returns the present stamp of a clock (`arena::clock`).
#[inline(always)]
pub fn now(kind: u32) -> u64 {
    const MASK: u64 = (1 << STAMP_BITS) - 1;
    if kind == clock::TSC { counter::after_loads() & MASK } else { vdso_monotonic() & MASK }
}

#[cold]
fn vdso_monotonic() -> u64 {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    let mut time = [0i64; 2];
    // SAFETY: the function writes a timespec of two words. Every kernel has this clock, so the call
    // does not fail, and errno stays.
    unsafe { clock_gettime(1, &raw mut time) };
    time[0].wrapping_mul(1_000_000_000).wrapping_add(time[1]).cast_unsigned()
}
