//! Calls made by threads while samples are recorded. The threads count all calls exactly, in their
//! slots.

use heapline_shared_format::arena::Slot;
use heapline_shared_format::event::domain;
use std::sync::atomic::Ordering;

/// Number of calls in one domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Blocks allocated.
    pub allocs: u64,
    /// Bytes allocated.
    pub bytes: u64,
    /// Blocks freed.
    pub frees: u64,
}

/// Number of calls, by domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted(pub [Calls; domain::COUNT]);

impl Counted {
    /// Reads the present counters of a slot. The counters continue over threads and sessions.
    pub fn read(slot: &Slot) -> Counted {
        let mut all = Counted::default();
        for (calls, slot) in all.0.iter_mut().zip(&slot.calls) {
            let [allocs, bytes, frees] = [&slot.allocs, &slot.bytes, &slot.frees].map(|n| n.load(Ordering::Relaxed));
            *calls = Calls { allocs, bytes, frees };
        }
        all
    }

    /// Returns the difference to an earlier count.
    pub fn since(&self, before: &Counted) -> Counted {
        self.with(before, u64::wrapping_sub)
    }

    /// Returns the sum of both counts.
    pub fn and(&self, other: &Counted) -> Counted {
        self.with(other, u64::wrapping_add)
    }

    /// Bytes allocated in all domains.
    pub fn bytes(&self) -> u64 {
        self.0.iter().fold(0, |sum, calls| sum.wrapping_add(calls.bytes))
    }

    fn with(&self, other: &Counted, f: impl Fn(u64, u64) -> u64) -> Counted {
        let mut all = *self;
        for (a, b) in all.0.iter_mut().zip(&other.0) {
            *a = Calls { allocs: f(a.allocs, b.allocs), bytes: f(a.bytes, b.bytes), frees: f(a.frees, b.frees) };
        }
        all
    }
}
