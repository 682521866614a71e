//! Objects announced to the aggregator.

use crate::platform::elf::Object;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Greatest number of objects known at one time.
const CAPACITY: usize = 4096;

/// The objects announced so far. All zeros are no objects.
#[repr(C)]
pub struct Known {
    used: AtomicUsize,
    entries: [Entry; CAPACITY],
}

#[repr(C)]
struct Entry {
    /// Start address; 0 for an entry without object.
    start: AtomicU64,
    end: AtomicU64,
    /// Session in which the object was announced.
    session: AtomicU32,
}

impl Known {
    /// Marks an object as announced in this session. Returns true to exactly one caller, who then
    /// has to announce the object.
    pub fn claim(&self, object: &Object, session: u32) -> bool {
        let (start, end) = (object.start as u64, object.end as u64);
        loop {
            let used = self.used.load(Ordering::Acquire).min(CAPACITY);
            for entry in &self.entries[..used] {
                if entry.start.load(Ordering::Acquire) == start && entry.end.load(Ordering::Relaxed) == end {
                    let before = entry.session.load(Ordering::Relaxed);
                    return before != session
                        && entry
                            .session
                            .compare_exchange(before, session, Ordering::Relaxed, Ordering::Relaxed)
                            .is_ok();
                }
            }
            let Some(entry) = self.entries.get(used) else { return false };
            if self.used.compare_exchange(used, used + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                entry.end.store(end, Ordering::Relaxed);
                entry.session.store(session, Ordering::Relaxed);
                entry.start.store(start, Ordering::Release);
                return true;
            }
        }
    }

    /// Removes an object for which `is_gone` holds, and returns the start address of the object.
    pub fn take(&self, is_gone: impl Fn(u64, u64) -> bool) -> Option<u64> {
        let used = self.used.load(Ordering::Acquire).min(CAPACITY);
        self.entries[..used].iter().find_map(|entry| {
            let start = entry.start.load(Ordering::Acquire);
            if start == 0 || !is_gone(start, entry.end.load(Ordering::Relaxed)) {
                return None;
            }
            entry.start.compare_exchange(start, 0, Ordering::AcqRel, Ordering::Relaxed).ok()
        })
    }
}
