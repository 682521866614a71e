//! Disjoint intervals of addresses, each with a value.
//!
//! Taking addresses out cuts an interval. Intervals are never joined, so two calls of the program
//! stay two intervals.

use std::collections::BTreeMap;

/// An interval, or a part of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<T> {
    /// First address.
    pub start: u64,
    /// First address behind the interval.
    pub end: u64,
    /// Value of the interval.
    pub what: T,
}

impl<T> Piece<T> {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }
}

/// A part taken out of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken<T> {
    /// The interval before the cut.
    pub whole: Piece<T>,
    /// The part taken out.
    pub inside: Piece<T>,
}

impl<T: Copy> Taken<T> {
    /// The remaining parts of the interval: before and behind the part taken out.
    pub fn rest(self) -> impl Iterator<Item = Piece<T>> {
        let Taken { whole, inside } = self;
        let parts = [Piece { end: inside.start, ..whole }, Piece { start: inside.end, ..whole }];
        parts.into_iter().filter(|part| part.start < part.end)
    }
}

/// Map from addresses to disjoint intervals.
#[derive(Clone, Debug)]
pub struct Intervals<T> {
    /// End and value, by start.
    by_start: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for Intervals<T> {
    fn default() -> Intervals<T> {
        Intervals { by_start: BTreeMap::new() }
    }
}

impl<T: Copy> Intervals<T> {
    /// Adds an interval. The addresses must be free.
    pub fn insert(&mut self, piece: Piece<T>) {
        debug_assert!(
            piece.start < piece.end && self.last_before(piece.end).is_none_or(|last| last.end <= piece.start)
        );
        self.by_start.insert(piece.start, (piece.end, piece.what));
    }

    /// Takes out all addresses from `start` to `end` with a value for which `is_so` is true. The
    /// last interval comes first, so remaining parts lie behind all intervals still to be visited.
    pub fn take_if(&mut self, start: u64, end: u64, is_so: impl Fn(&T) -> bool, mut taken: impl FnMut(Taken<T>)) {
        let mut end = end;
        while start < end
            && let Some(whole) = self.last_before(end).filter(|last| last.end > start)
        {
            let inside = Piece { start: whole.start.max(start), end: whole.end.min(end), what: whole.what };
            end = inside.start;
            if is_so(&whole.what) {
                self.by_start.remove(&whole.start);
                let part = Taken { whole, inside };
                part.rest().for_each(|rest| self.insert(rest));
                taken(part);
            }
        }
    }

    /// Takes out all addresses from `start` to `end`.
    pub fn take(&mut self, start: u64, end: u64, taken: impl FnMut(Taken<T>)) {
        self.take_if(start, end, |_| true, taken);
    }

    /// Returns the interval that contains an address.
    pub fn find(&self, address: u64) -> Option<Piece<T>> {
        self.last_before(address.checked_add(1)?).filter(|piece| piece.end > address)
    }

    /// All intervals, by rising address.
    pub fn iter(&self) -> impl Iterator<Item = Piece<T>> + '_ {
        self.by_start.iter().map(|(&start, &(end, what))| Piece { start, end, what })
    }

    /// Values of all intervals, by rising address.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> + '_ {
        self.by_start.values_mut().map(|(_, what)| what)
    }

    /// Removes all intervals.
    pub fn clear(&mut self) {
        self.by_start.clear();
    }

    fn last_before(&self, end: u64) -> Option<Piece<T>> {
        let (&start, &(end, what)) = self.by_start.range(..end).next_back()?;
        Some(Piece { start, end, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: u64, end: u64, what: char) -> Piece<char> {
        Piece { start, end, what }
    }

    #[test]
    fn what_is_taken_cuts_the_rest() {
        let mut intervals = Intervals::default();
        [piece(0, 10, 'a'), piece(10, 20, 'b'), piece(30, 40, 'c')]
            .into_iter()
            .for_each(|piece| intervals.insert(piece));
        let mut taken = Vec::new();
        intervals.take_if(5, 35, |&what| what != 'b', |part| taken.push(part.inside));
        assert_eq!(taken, [piece(30, 35, 'c'), piece(5, 10, 'a')]);
        assert_eq!(intervals.iter().collect::<Vec<_>>(), [piece(0, 5, 'a'), piece(10, 20, 'b'), piece(35, 40, 'c')]);
        let mut rests = Vec::new();
        intervals.take(12, 18, |part| rests.extend(part.rest()));
        assert_eq!(rests, [piece(10, 12, 'b'), piece(18, 20, 'b')]);
        assert_eq!(intervals.find(11), Some(piece(10, 12, 'b')));
        assert_eq!([9, 12, 20, 34, 40, u64::MAX].map(|address| intervals.find(address)), [None; 6]);
    }

    #[test]
    fn nothing_is_taken_where_nothing_is() {
        let mut intervals = Intervals::default();
        intervals.insert(piece(10, 20, 'a'));
        for (start, end) in [(0, 10), (20, 30), (15, 15), (20, 20)] {
            intervals.take(start, end, |part| panic!("{part:?}"));
        }
        assert_eq!(intervals.iter().count(), 1);
    }
}
