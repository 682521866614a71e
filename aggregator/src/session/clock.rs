//! The clock of the stamps. Collector and aggregator must read the same clock.

use crate::base::sys;
use heapline_shared_format::arch::counter;
use heapline_shared_format::arena;
use std::fs;

/// A clock for stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The invariant time-stamp counter of the processor.
    Tsc,
    /// `CLOCK_MONOTONIC`.
    Monotonic,
}

impl Clock {
    /// Returns the best clock of this machine: the TSC if the kernel itself uses the TSC, otherwise
    /// `CLOCK_MONOTONIC`.
    pub fn of_this_machine() -> Clock {
        let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        let invariant = || counter::is_invariant(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
        let is_kernels = source.is_ok_and(|name| name.trim() == counter::CLOCK_SOURCE);
        if is_kernels && invariant() { Clock::Tsc } else { Clock::Monotonic }
    }

    /// Number of the clock in the arena.
    pub fn code(self) -> u32 {
        match self {
            Clock::Tsc => arena::clock::TSC,
            Clock::Monotonic => arena::clock::MONOTONIC,
        }
    }

    /// Returns the present time as a stamp.
    pub fn now(self) -> u64 {
        match self {
            Clock::Tsc => sys::tsc(),
            Clock::Monotonic => sys::monotonic(),
        }
    }
}
