//! The clock of the stamps. Both sides must read the same one.

use crate::base::sys;
use heapline_shared_format::arena;
use std::fs;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The invariant time-stamp counter.
    Tsc,
    /// `CLOCK_MONOTONIC`.
    Monotonic,
}

impl Clock {
    /// The best clock of this machine: the TSC where the kernel itself trusts it.
    pub fn of_this_machine() -> Clock {
        let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        let invariant = || {
            let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
            ["constant_tsc", "nonstop_tsc", "rdtscp"].iter().all(|flag| flags.split(' ').any(|word| word == *flag))
        };
        if source.is_ok_and(|name| name.trim() == "tsc") && invariant() { Clock::Tsc } else { Clock::Monotonic }
    }

    /// Its number in the arena.
    pub fn code(self) -> u32 {
        match self {
            Clock::Tsc => arena::clock::TSC,
            Clock::Monotonic => arena::clock::MONOTONIC,
        }
    }

    /// The present time as a stamp.
    pub fn now(self) -> u64 {
        match self {
            Clock::Tsc => sys::tsc(),
            Clock::Monotonic => sys::monotonic(),
        }
    }
}
