//! What a ring says of the address space, and what that does to the ranges.
//!
//! Ranges are few beside blocks, so nothing waits in a batch.

use super::ranges::{Call, Owner};
use super::{Ring, Table};
use crate::contradiction::Contradiction;
use heapline_shared_format::mapping::{Mapping, Pages};

/// Most calls that take pages away, one inside another's signal handler. More were left for good, by jumps out of them.
const MAX_UNMAPS: usize = 8;

impl Table {
    /// The program has changed its address space.
    pub(super) fn mapping(&mut self, ring: &mut Ring, mapping: Mapping) {
        let mut owner = |stack, reserved| Owner { stack: self.stack(ring, stack).0, thread: ring.thread, reserved };
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
    /// The call that was to take these pages away, and has ended.
    fn ended(&mut self, pages: Pages) -> Option<Call> {
        let place = self.unmaps.iter().rposition(|call| call.pages == pages)?;
        Some(self.unmaps.remove(place))
    }
}
