//! A list that only grows, in chunks shared by its copies: a copy takes no time and little memory.

use std::ops::Index;
use std::sync::Arc;

/// Items of a chunk.
const CHUNK: usize = 4096;

/// A list that only grows. Copies share all full chunks.
#[derive(Clone, Debug)]
pub struct Chunks<T> {
    full: Vec<Arc<[T]>>,
    last: Vec<T>,
}

impl<T> Default for Chunks<T> {
    fn default() -> Chunks<T> {
        Chunks { full: Vec::new(), last: Vec::new() }
    }
}

impl<T> Chunks<T> {
    /// Adds an item.
    pub fn push(&mut self, item: T) {
        self.last.push(item);
        if self.last.len() == CHUNK {
            self.full.push(std::mem::take(&mut self.last).into());
        }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.full.len() * CHUNK + self.last.len()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes taken by the items.
    pub fn bytes(&self) -> usize {
        self.len() * size_of::<T>()
    }

    /// Returns an item. None beyond the end.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        match self.full.get(index / CHUNK) {
            Some(chunk) => chunk.get(index % CHUNK),
            None => self.last.get(index - self.full.len() * CHUNK),
        }
    }

    /// All items, by index.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.full.iter().flat_map(|chunk| chunk.iter()).chain(&self.last)
    }

    /// Finds the item with a key among items by rising key.
    pub fn find_by_key<K: Ord>(&self, key: K, of: impl Fn(&T) -> K) -> Option<&T> {
        let chunk = self.full.partition_point(|chunk| chunk.last().is_some_and(|last| of(last) < key));
        let chunk: &[T] = self.full.get(chunk).map_or(&self.last, |chunk| chunk);
        chunk.binary_search_by_key(&key, of).ok().map(|place| &chunk[place])
    }
}

impl<T: Clone> Chunks<T> {
    /// Returns an item for a change. A chunk that a copy shares is copied first.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        let full = self.full.len();
        match self.full.get_mut(index / CHUNK) {
            Some(chunk) => Arc::make_mut(chunk).get_mut(index % CHUNK),
            None => self.last.get_mut(index - full * CHUNK),
        }
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        self.get(index).expect("an index below the length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut list = Chunks::default();
        let mut copies = Vec::new();
        for i in 0..3 * CHUNK + 5 {
            if i % (CHUNK / 2) == 3 {
                copies.push((list.clone(), i));
            }
            assert_eq!((list.len(), list.get(i)), (i, None));
            list.push(2 * i);
        }
        for i in [0, CHUNK, 3 * CHUNK + 4] {
            assert_eq!((list[i], list.get(i)), (2 * i, Some(&(2 * i))));
            *list.get_mut(i).expect("an item") += 1;
            assert_eq!(list.find_by_key(2 * i + 1, |&item| item), Some(&(2 * i + 1)));
        }
        assert_eq!(list.find_by_key(1_000_000, |&item| item), None);
        assert_eq!(list.find_by_key(5, |&item| item), None);
        for (copied, len) in copies {
            assert!(copied.len() == len && copied.iter().copied().eq((0..len).map(|i| 2 * i)));
        }
    }
}
