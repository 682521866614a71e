//! Applies records about the address space to the ranges.
//!
//! Ranges are few compared to blocks, so these records are applied at once, without a batch.

use super::ranges::{Call, Owner};
use super::{Ring, Table};
use crate::table::contradiction::Contradiction;
use heapline_shared_format::mapping::{Mapping, Pages};

/// Most open calls of a ring on taking pages away, nested by signal handlers. Further open calls
/// come from handlers that jumped out of older calls.
const MAX_UNMAPS: usize = 8;

impl Table {
    /// Applies a change of the address space.
    pub(super) fn mapping(&mut self, ring: &mut Ring, mapping: Mapping) {
        let birth = self.shared.births.now();
        let mut owner =
            |stack, reserved| Owner { stack: self.stack(ring, stack).0, thread: ring.thread, birth, reserved };
        match mapping {
            Mapping::Map { pages, reserved, stack } => {
                let owner = owner(stack, reserved);
                self.ranges.map(pages, owner, &mut self.shared.threads);
            }
            Mapping::Protect { pages, reserved, stack } => {
                let owner = owner(stack, reserved);
                self.ranges.protect(pages, owner, &mut self.shared.threads);
            }
            Mapping::Unmap { pages } => {
                if ring.unmaps.len() == MAX_UNMAPS {
                    self.contradictions.count(Contradiction::Unmap);
                    self.ranges.kept(ring.unmaps.remove(0), &mut self.shared.threads);
                }
                ring.unmaps.push(self.ranges.unmap(pages));
            }
            Mapping::Unmapped { pages } => self.ranges.unmapped(ring.ended(pages), &mut self.shared.threads),
            Mapping::Kept { pages } => {
                if let Some(call) = ring.ended(pages) {
                    self.ranges.kept(call, &mut self.shared.threads);
                }
            }
            Mapping::Remapped { old, new, stays, stack } => {
                let owner = owner(stack, false);
                let call = if stays { None } else { ring.ended(old) };
                self.ranges.remapped(call, old, new, owner, &mut self.shared.threads);
            }
        }
    }
}

impl Ring {
    /// Removes and returns the open call for these pages.
    fn ended(&mut self, pages: Pages) -> Option<Call> {
        let place = self.unmaps.iter().rposition(|call| call.pages == pages)?;
        Some(self.unmaps.remove(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::order::Sink;
    use heapline_shared_format::event::Event;
    use heapline_shared_format::snapshot::Domain;
    use proptest::prelude::*;

    fn pages(from: u64, to: u64) -> Pages {
        Pages::covering(from * 4096, (to - from) * 4096).expect("whole pages")
    }

    /// Returns a table and `rings` rings, each with the stacks 0 and 1.
    fn bench(rings: u32) -> (Table, Vec<Ring>) {
        let mut table = Table::new(64, 0);
        let mut rings: Vec<Ring> = (0..rings).map(|tid| table.ring(tid, false)).collect();
        for ring in &mut rings {
            for id in 0..2 {
                let frames = &[0x1000, 0x2000 + u64::from(id)];
                let stack = Event::Stack { id, keep: 0, total: 2, truncated: false, more: false, domain: 0, frames };
                table.apply(ring, stack).expect("a definition");
            }
        }
        (table, rings)
    }

    fn apply(table: &mut Table, ring: &mut Ring, mapping: Mapping) {
        table.apply(ring, Event::Mapping { stamp: 0, mapping }).expect("a ring is never given up for these");
    }

    fn live(table: &Table) -> Vec<(u64, u64)> {
        table.ranges().live(Domain::Mmap).iter().map(|block| (block.address / 4096, block.size / 4096)).collect()
    }

    /// A signal handler unmaps between the two records of an interrupted munmap, in the same ring.
    #[test]
    fn a_handlers_call_inside_another_ends_first() {
        let (mut table, mut rings) = bench(1);
        let ring = &mut rings[0];
        apply(&mut table, ring, Mapping::Map { pages: pages(0, 20), reserved: false, stack: 1 });
        apply(&mut table, ring, Mapping::Unmap { pages: pages(0, 5) });
        apply(&mut table, ring, Mapping::Unmap { pages: pages(10, 12) });
        apply(&mut table, ring, Mapping::Unmapped { pages: pages(10, 12) });
        assert_eq!(live(&table), [(0, 10), (12, 8)]);
        apply(&mut table, ring, Mapping::Unmapped { pages: pages(0, 5) });
        assert_eq!(live(&table), [(5, 5), (12, 8)]);
        assert_eq!((table.contradictions().total(), table.ranges().untracked_frees()), (0, 0));
        assert_eq!(table.records(), 0, "these are no calls of an allocator");
    }

    #[test]
    fn calls_that_never_end_are_forgotten_and_counted() {
        let (mut table, mut rings) = bench(1);
        let ring = &mut rings[0];
        apply(&mut table, ring, Mapping::Map { pages: pages(0, 20), reserved: false, stack: 1 });
        for i in 0..MAX_UNMAPS as u64 + 2 {
            apply(&mut table, ring, Mapping::Unmap { pages: pages(i, i + 1) });
        }
        assert_eq!(table.contradictions().of(Contradiction::Unmap), 2);
        assert_eq!(table.ranges().open_calls(), MAX_UNMAPS as u64);
        // An end record without a begin record takes no page.
        apply(&mut table, ring, Mapping::Unmapped { pages: pages(0, 1) });
        assert_eq!((live(&table), table.ranges().untracked_frees()), (vec![(0, 20)], 1));
    }

    fn any_mapping() -> impl Strategy<Value = Mapping> {
        let place = || prop_oneof![(0_u64..24, 1_u64..8), (0_u64..1 << 36, Just(0)).prop_map(|(from, _)| (from, 0))];
        let some = |(from, n): (u64, u64)| pages(from, (from + n.max(1)).min(1 << 36));
        (0..6, place(), place(), any::<bool>(), 0..3_u32).prop_map(move |(what, at, old, flag, stack)| match what {
            0 => Mapping::Map { pages: some(at), reserved: flag, stack },
            1 => Mapping::Protect { pages: some(at), reserved: flag, stack },
            2 => Mapping::Unmap { pages: some(at) },
            3 => Mapping::Unmapped { pages: some(at) },
            4 => Mapping::Kept { pages: some(at) },
            _ => Mapping::Remapped { old: some(old), new: some(at), stays: flag, stack },
        })
    }

    proptest! {
        /// Records in any order, with ends without begins and pages of other threads. The sums stay
        /// the sums of the ranges, and no thread with a range is given up.
        #[test]
        fn any_records_leave_sums_that_fit(records in prop::collection::vec((0..3_usize, any_mapping(), 0..40_u8), 0..200)) {
            let (mut table, mut rings) = bench(3);
            for (ring, mapping, rare) in records {
                match rare {
                    0 => table.clear_traces(),
                    1 => table.reset_peak(),
                    2 => {
                        let next = table.ring(7, false);
                        table.close(std::mem::replace(&mut rings[ring], next));
                    }
                    _ => apply(&mut table, &mut rings[ring], mapping),
                }
                for (domain, layer) in table.ranges().layers() {
                    let live = table.ranges().live(domain);
                    let current = layer.totals().current();
                    prop_assert_eq!((current.size, current.count), (live.iter().map(|b| b.size).sum(), live.len() as u64));
                    prop_assert!(current.size <= layer.totals().peak());
                    for block in live {
                        prop_assert!(table.threads().get(block.thread).is_some_and(|thread| thread.is_needed()));
                    }
                }
            }
        }
    }
}
