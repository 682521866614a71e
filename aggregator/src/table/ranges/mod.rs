//! What the program has mapped: ranges of pages, with the stacks that asked for them.
//!
//! A range is what one call made of pages, or what later calls have left of it: it is cut where a part is unmapped, mapped
//! over, moved or protected otherwise, and all its parts keep the stack. There are two layers of them, memory that may be
//! used and mere reservations (`PROT_NONE`); each page is in one of them at most.
//!
//! A call that takes pages away is two records, and in between the pages stay live and unchanged, as a block in realloc does:
//!
//! ```text
//! UNMAP            the pages are leaving
//!   the call       another thread may be given them as soon as the kernel has them
//!   MAP, another's   what of it was leaving is put aside: the kernel has let go of it, and the end record says where to
//! UNMAPPED         what is still there and leaving goes, what was put aside is forgotten
//! REMAPPED         both go to their new place
//! KEPT             nothing was taken away
//! ```
//!
//! Sums count bytes of live ranges. `allocs` are calls that gave bytes to a layer, `frees` calls that took some from it,
//! and a call may do both.

use super::intervals::{Intervals, Piece, Taken};
use super::live::Block;
use super::threads::Threads;
use super::totals::{StackAmounts, Totals};
use heapline_shared_format::mapping::Pages;
use heapline_shared_format::snapshot::Domain;
use std::collections::HashMap;

/// Who asked for a range, and whether only its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Index of the stack.
    pub stack: u32,
    /// Index of the thread.
    pub thread: u32,
    /// Whether nothing may be read or written there.
    pub reserved: bool,
}

type Range = Piece<Owner>;

/// A call that may take pages away and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The pages.
    pub pages: Pages,
    number: u64,
}

/// See the module.
#[derive(Default)]
pub struct Ranges {
    places: Places,
    /// Of memory, and of reservations.
    layers: [Layer; 2],
    calls: u64,
    untracked_frees: u64,
}

/// Which range is where.
#[derive(Default)]
struct Places {
    live: Intervals<Owner>,
    /// Pages that a call may have given back, and the call's number: the youngest one's, where several could.
    leaving: Intervals<u64>,
    /// By number of an open call, the ranges whose pages others were given meanwhile. Their threads still have them.
    put_aside: HashMap<u64, Aside>,
}

/// See [`Places::put_aside`].
#[derive(Default)]
struct Aside {
    ranges: Vec<Range>,
    /// Where ranges were cut for that, and no call of the program's has cut them.
    seams: Vec<u64>,
}

impl Aside {
    fn put(&mut self, part: &Taken<Owner>) {
        self.ranges.push(part.inside);
        let ends = [(part.inside.start, part.whole.start), (part.inside.end, part.whole.end)];
        self.seams.extend(ends.into_iter().filter(|(inside, whole)| inside != whole).map(|(seam, _)| seam));
    }

    /// The ranges by rising address, as if they had never been cut.
    fn joined(mut self) -> Vec<Range> {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.seams.sort_unstable();
        let mut joined: Vec<Range> = Vec::with_capacity(self.ranges.len());
        for range in self.ranges {
            match joined.last_mut() {
                Some(last) if last.end == range.start && self.seams.binary_search(&range.start).is_ok() => {
                    last.end = range.end;
                }
                _ => joined.push(range),
            }
        }
        joined
    }
}

/// One layer's sums.
#[derive(Default)]
pub struct Layer {
    /// Few of the process's stacks map memory, so these have numbers of their own here.
    rows: HashMap<u32, u32>,
    stacks: Vec<u32>,
    totals: Totals,
    is_used: bool,
}

impl Layer {
    /// The sums; their stacks are numbered as in [`Layer::stacks`].
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Sums of every stack that ever mapped something here.
    pub fn stacks(&self) -> impl Iterator<Item = (u32, StackAmounts)> + '_ {
        self.totals.stacks().map(|(row, amounts)| (self.stacks[row as usize], amounts))
    }

    fn row(&mut self, stack: u32) -> u32 {
        self.is_used = true;
        *self.rows.entry(stack).or_insert_with(|| {
            self.stacks.push(stack);
            u32::try_from(self.stacks.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

impl Ranges {
    /// What a forked child begins with: the same ranges; calls that other threads are in never end there.
    pub fn inherited(&self) -> Ranges {
        let layer = |layer: &Layer| Layer {
            rows: layer.rows.clone(),
            stacks: layer.stacks.clone(),
            totals: layer.totals.inherited(),
            is_used: layer.is_used,
        };
        let [memory, reserved] = &self.layers;
        Ranges {
            places: Places { live: self.places.live.clone(), ..Places::default() },
            layers: [layer(memory), layer(reserved)],
            ..Ranges::default()
        }
    }
}

/// One record's changes to the sums. A thread keeps what goes until the end, since one without ranges may be given up.
struct Edit<'t> {
    layers: &'t mut [Layer; 2],
    threads: &'t mut Threads,
    leavers: Vec<u32>,
    /// Which layers have lost something for good.
    loses: [bool; 2],
}

impl Edit<'_> {
    fn come(&mut self, range: &Range) {
        let layer = &mut self.layers[usize::from(range.what.reserved)];
        let row = layer.row(range.what.stack);
        layer.totals.come(row, range.size());
        self.threads.gain(range.what.thread);
    }

    /// A part of a range goes, and what is left of that range are ranges now.
    fn cut(&mut self, part: Taken<Owner>) {
        let Owner { stack, thread, reserved } = part.whole.what;
        let layer = &mut self.layers[usize::from(reserved)];
        let row = layer.row(stack);
        layer.totals.go(row, part.whole.size());
        self.leavers.push(thread);
        part.rest().for_each(|rest| self.come(&rest));
    }

    fn lose(&mut self, range: &Range) {
        self.loses[usize::from(range.what.reserved)] = true;
    }

    /// A call was given so many bytes.
    fn count(&mut self, owner: Owner, bytes: u64) {
        let layer = &mut self.layers[usize::from(owner.reserved)];
        let row = layer.row(owner.stack);
        layer.totals.count_alloc(row, bytes);
    }

    fn finish(self) {
        self.leavers.into_iter().for_each(|thread| self.threads.lose(thread));
        for (layer, _) in self.layers.iter_mut().zip(self.loses).filter(|(_, loses)| *loses) {
            layer.totals.count_free();
        }
    }
}

impl Places {
    fn put(&mut self, range: Range, edit: &mut Edit<'_>) {
        self.live.insert(range);
        edit.come(&range);
    }

    /// A range of `owner`'s, if there is room for one; its bytes.
    fn put_between(&mut self, start: u64, end: u64, owner: Owner, edit: &mut Edit<'_>) -> u64 {
        if start >= end {
            return 0;
        }
        self.put(Piece { start, end, what: owner }, edit);
        end - start
    }

    /// Makes room for new pages. What another call was about to give back there, it has given back.
    fn clear(&mut self, pages: Pages, edit: &mut Edit<'_>) {
        let Places { live, leaving, put_aside } = self;
        leaving.take(pages.start(), pages.end(), |left| {
            live.take(left.inside.start, left.inside.end, |part| {
                edit.threads.gain(part.inside.what.thread);
                edit.cut(part);
                put_aside.entry(left.inside.what).or_default().put(&part);
            });
        });
        live.take(pages.start(), pages.end(), |part| {
            edit.cut(part);
            edit.lose(&part.inside);
        });
    }

    /// What an open call has taken away, by rising address.
    fn end(&mut self, call: Call, edit: &mut Edit<'_>) -> Vec<Range> {
        let Places { live, leaving, put_aside } = self;
        let mut taken = put_aside.remove(&call.number).unwrap_or_default();
        edit.leavers.extend(taken.ranges.iter().map(|range| range.what.thread));
        let is_its = |&number: &u64| number == call.number;
        leaving.take_if(call.pages.start(), call.pages.end(), is_its, |left| {
            live.take(left.inside.start, left.inside.end, |part| {
                edit.cut(part);
                taken.ranges.push(part.inside);
            });
        });
        taken.joined()
    }
}

impl Ranges {
    /// A call mapped `pages` anew, over what was there.
    pub fn map(&mut self, pages: Pages, owner: Owner, threads: &mut Threads) {
        let (places, mut edit) = self.edit(threads);
        places.clear(pages, &mut edit);
        let bytes = places.put_between(pages.start(), pages.end(), owner, &mut edit);
        edit.count(owner, bytes);
        edit.finish();
    }

    /// A call let `pages` be used, or no longer: those that this changes are its own from then on.
    pub fn protect(&mut self, pages: Pages, owner: Owner, threads: &mut Threads) {
        let (places, mut edit) = self.edit(threads);
        let mut changed = Vec::new();
        let changes = |what: &Owner| what.reserved != owner.reserved;
        places.live.take_if(pages.start(), pages.end(), changes, |part| {
            edit.cut(part);
            edit.lose(&part.inside);
            changed.push(Piece { what: owner, ..part.inside });
        });
        if !changed.is_empty() {
            edit.count(owner, changed.iter().map(Piece::size).sum());
        }
        changed.into_iter().for_each(|range| places.put(range, &mut edit));
        edit.finish();
    }

    /// A call that may take `pages` away is about to be made.
    pub fn unmap(&mut self, pages: Pages) -> Call {
        self.calls += 1;
        let number = self.calls;
        self.places.leaving.take(pages.start(), pages.end(), |_| ());
        self.places.leaving.insert(Piece { start: pages.start(), end: pages.end(), what: number });
        self.places.put_aside.insert(number, Aside::default());
        Call { pages, number }
    }

    /// It has taken them away. Without the call nothing goes: whoever has the pages now may have been given them since.
    pub fn unmapped(&mut self, call: Option<Call>, threads: &mut Threads) {
        let (places, mut edit) = self.edit(threads);
        let taken = call.map_or_else(Vec::new, |call| places.end(call, &mut edit));
        taken.iter().for_each(|range| edit.lose(range));
        edit.finish();
        self.untracked_frees += u64::from(taken.is_empty());
    }

    /// It has failed, or will never be heard of again. What was mapped over meanwhile is gone all the same.
    pub fn kept(&mut self, call: Call, threads: &mut Threads) {
        let (places, mut edit) = self.edit(threads);
        let Places { leaving, put_aside, .. } = places;
        leaving.take_if(call.pages.start(), call.pages.end(), |&number| number == call.number, |_| ());
        for range in put_aside.remove(&call.number).unwrap_or_default().ranges {
            edit.lose(&range);
            edit.leavers.push(range.what.thread);
        }
        edit.finish();
    }

    /// A call has moved `old` to `new`, where it may be shorter, or longer by pages that this call asked for. Without the call
    /// nothing was moved: `old` stays as it is, or was not known.
    pub fn remapped(&mut self, call: Option<Call>, old: Pages, new: Pages, owner: Owner, threads: &mut Threads) {
        let (places, mut edit) = self.edit(threads);
        let moved = call.map_or_else(Vec::new, |call| places.end(call, &mut edit));
        let is_unknown = call.is_some() && moved.is_empty();
        // New pages are like the last old one.
        let last = moved.last().filter(|last| last.end == old.end());
        let owner = Owner { reserved: last.is_some_and(|last| last.what.reserved), ..owner };
        places.clear(new, &mut edit);
        let (mut next, mut asked_for) = (new.start(), 0);
        for range in moved {
            let start = new.start() + (range.start - old.start());
            let end = (start + range.size()).min(new.end());
            if start + range.size() > new.end() {
                edit.lose(&range);
            }
            if start < end {
                asked_for += places.put_between(next, start, owner, &mut edit);
                places.put(Piece { start, end, what: range.what }, &mut edit);
                next = end;
            }
        }
        asked_for += places.put_between(next, new.end(), owner, &mut edit);
        if asked_for > 0 {
            edit.count(owner, asked_for);
        }
        edit.finish();
        self.untracked_frees += u64::from(is_unknown);
    }

    /// Forgets all ranges; what is unmapped of them later is untracked. Whoever calls it lets the threads lose all.
    pub fn clear(&mut self) {
        self.places.live.clear();
        self.places.put_aside.values_mut().for_each(|aside| *aside = Aside::default());
        for layer in &mut self.layers {
            *layer = Layer { is_used: layer.is_used, ..Layer::default() };
        }
    }

    /// The peaks become what is live now.
    pub fn reset_peak(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.totals.reset_peak());
    }

    /// The layers that have or had ranges, with their sums.
    pub fn layers(&self) -> impl Iterator<Item = (Domain, &Layer)> {
        [Domain::Mmap, Domain::Reserved].into_iter().zip(&self.layers).filter(|(_, layer)| layer.is_used)
    }

    /// The ranges of a layer, as blocks.
    pub fn live(&self, domain: Domain) -> Vec<Block> {
        let ranges = self.places.live.iter().filter(|range| domain_of(range) == domain);
        ranges.map(|range| block(&range)).collect()
    }

    /// The range that an address lies in.
    pub fn find(&self, address: u64) -> Option<(Domain, Block)> {
        self.places.live.find(address).map(|range| (domain_of(&range), block(&range)))
    }

    /// Calls that took nothing away that was known.
    pub fn untracked_frees(&self) -> u64 {
        self.untracked_frees
    }

    /// Calls that may take pages away, and have not ended.
    pub fn open_calls(&self) -> u64 {
        self.places.put_aside.len() as u64
    }

    fn edit<'t>(&'t mut self, threads: &'t mut Threads) -> (&'t mut Places, Edit<'t>) {
        (&mut self.places, Edit { layers: &mut self.layers, threads, leavers: Vec::new(), loses: [false; 2] })
    }
}

fn domain_of(range: &Range) -> Domain {
    if range.what.reserved { Domain::Reserved } else { Domain::Mmap }
}

fn block(range: &Range) -> Block {
    let Owner { stack, thread, .. } = range.what;
    Block { address: range.start, size: range.size(), stack, thread, in_program: false }
}

#[cfg(test)]
mod tests;
