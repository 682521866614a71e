//! The names of the program's pools. A name gets a number, and the aggregator is told the name once
//! a session, in front of the first record with the number.
//!
//! No thread waits for another. Two threads that name a pool at the same time may give the pool two
//! numbers: the aggregator goes by the name.

use super::{publish, tell as tell_text};
use crate::thread::{Published, Thread};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};
use heapline_shared_format::query::{self, MOST_POOLS};

/// Longest name in bytes. A longer name is cut.
pub const LONGEST_NAME: usize = 64;
/// Name of the pool with the blocks of all pools beyond the number of pools.
const OTHERS: &[u8] = b"(further pools)";
/// Number of the pool named [`OTHERS`].
#[expect(clippy::cast_possible_truncation, reason = "a small number")]
const LAST: u32 = MOST_POOLS as u32 - 1;

/// State of a place: free, being written, written with a name of `state - WRITTEN` bytes.
const FREE: u32 = 0;
const WRITES: u32 = 1;
const WRITTEN: u32 = 2;

struct Place {
    state: AtomicU32,
    name: UnsafeCell<[u8; LONGEST_NAME]>,
    /// The last session in which the name was told.
    told: AtomicU32,
}

// SAFETY: the name is written by the one thread that has changed the state from FREE to WRITES, and
// read only in the state WRITTEN.
unsafe impl Sync for Place {}

static PLACES: [Place; MOST_POOLS] = [const {
    Place { state: AtomicU32::new(FREE), name: UnsafeCell::new([0; LONGEST_NAME]), told: AtomicU32::new(0) }
}; MOST_POOLS];

impl Place {
    fn name(&self) -> Option<&[u8]> {
        let bytes = self.state.load(Ordering::Acquire).checked_sub(WRITTEN)? as usize;
        // SAFETY: the name is written, and stays as it is.
        unsafe { &*self.name.get() }.get(..bytes)
    }

    /// Writes the name into a free place. Returns false for a place taken by another thread.
    fn write(&self, name: &[u8]) -> bool {
        if self.state.compare_exchange(FREE, WRITES, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        // SAFETY: this thread alone has changed the state, and nobody reads before the next store.
        let place = unsafe { &mut *self.name.get() };
        place[..name.len()].copy_from_slice(name);
        #[expect(clippy::cast_possible_truncation, reason = "at most LONGEST_NAME")]
        self.state.store(WRITTEN + name.len() as u32, Ordering::Release);
        true
    }
}

/// Returns the number of the pool with this name, of at most [`LONGEST_NAME`] bytes.
pub fn number(name: &[u8]) -> u32 {
    for (number, place) in (0..LAST).zip(&PLACES) {
        if place.name() == Some(name) || place.state.load(Ordering::Relaxed) == FREE && place.write(name) {
            return number;
        }
    }
    PLACES[LAST as usize].write(OTHERS);
    LAST
}

/// Tells the reader of the ring the name of a pool, unless the name was told in this session.
pub fn tell(thread: &mut Thread, number: u32) -> Published {
    let session = thread.session();
    let Some(place) = PLACES.get(number as usize).filter(|place| place.told.load(Ordering::Acquire) != session) else {
        return Published::Yes;
    };
    let Some(name) = place.name() else { return Published::Yes };
    let mut published = tell_text(thread, name.as_ptr(), name.len());
    if published == Published::Yes {
        published = publish(thread, query::POOL, number.into());
    }
    if published == Published::Yes {
        place.told.store(session, Ordering::Release);
    }
    published
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_too_many_names_share_the_last() {
        let first = number(b"first");
        assert_eq!((number(b"first"), PLACES[first as usize].name()), (first, Some(&b"first"[..])));
        let others: std::vec::Vec<u32> = (0..400).map(|n| number(std::format!("pool {n}").as_bytes())).collect();
        assert_eq!(others[399], LAST);
        assert_eq!(PLACES[LAST as usize].name(), Some(OTHERS));
        assert_eq!((number(b"pool 3"), number(b"first")), (others[3], first));
        let long = [b'x'; LONGEST_NAME];
        assert_eq!(number(&long), LAST, "no place is left");
    }
}
