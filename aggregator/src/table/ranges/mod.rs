//! Ranges of pages mapped by the program, with the stacks of the mapping calls.
//!
//! A range covers the pages of a mapping call, or the pages left by later calls. A range is cut
//! where a part is unmapped, mapped over, moved or protected otherwise; all parts keep the stack.
//! Ranges have two layers: usable memory, and mere reservations (`PROT_NONE`). A page is in at most
//! one layer.
//!
//! A call that takes pages away has two records. Between the records the pages stay live and
//! unchanged, like a block in realloc:
//!
//! ```text
//! UNMAP                   the pages are leaving
//!   the call              the kernel takes the pages, and may give them to another thread
//!   MAP by another thread leaving pages in its range are put aside: the kernel has taken
//!                         them, and the end record will tell where they went
//! UNMAPPED                pages still leaving go, pages put aside are forgotten
//! REMAPPED                both go to the new place
//! KEPT                    nothing was taken away
//! ```
//!
//! Sums count bytes of live ranges. `allocs` counts calls with bytes added to a layer. `frees`
//! counts calls with bytes taken from a layer. A call may do both.

use super::births::{Birth, Recoding};
use super::intervals::{Intervals, Piece, Taken};
use super::live::Block;
use super::threads::Threads;
use super::totals::{Amounts, EndedStep, RowChange, Share, Totals};
use super::weights::WHOLE;
use heapline_shared_format::mapping::Pages;
use heapline_shared_format::snapshot::Domain;
use std::collections::HashMap;

/// Origin of a range, and whether the range only reserves addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Index of the asking stack.
    pub stack: u32,
    /// Index of the asking thread.
    pub thread: u32,
    /// Time of the call.
    pub birth: Birth,
    /// Whether the pages are neither readable nor writable.
    pub reserved: bool,
}

type Range = Piece<Owner>;

/// An open call that may take pages away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The pages.
    pub pages: Pages,
    number: u64,
}

/// Live ranges, open calls and sums of one program.
#[derive(Default)]
pub struct Ranges {
    places: Places,
    /// Sums of memory, and of reservations.
    layers: [Layer; 2],
    calls: u64,
    untracked_frees: u64,
}

/// Addresses of the ranges.
#[derive(Default)]
struct Places {
    live: Intervals<Owner>,
    /// Pages possibly given back by an open call, with the number of the call. Of several possible
    /// calls, the youngest.
    leaving: Intervals<u64>,
    /// Ranges with pages given to other threads during an open call, by number of the call. The
    /// threads of these ranges keep them until the call ends.
    put_aside: HashMap<u64, Aside>,
}

/// Ranges put aside for one open call ([`Places::put_aside`]).
#[derive(Default)]
struct Aside {
    ranges: Vec<Range>,
    /// Addresses where ranges were cut only by putting a part aside, not by a call of the program.
    seams: Vec<u64>,
}

impl Aside {
    fn put(&mut self, part: &Taken<Owner>) {
        self.ranges.push(part.inside);
        let ends = [(part.inside.start, part.whole.start), (part.inside.end, part.whole.end)];
        self.seams.extend(ends.into_iter().filter(|(inside, whole)| inside != whole).map(|(seam, _)| seam));
    }

    /// Returns the ranges by rising address, joined at the seams.
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

/// Sums of one layer.
#[derive(Default)]
pub struct Layer {
    /// Row of each stack. Few stacks of a process map memory, so these have numbers of their own in
    /// a layer.
    rows: HashMap<u32, u32>,
    stacks: Vec<u32>,
    totals: Totals,
    is_used: bool,
}

impl Layer {
    /// Sums of the layer. Stacks are numbered as in [`Layer::stacks`].
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Sums of every stack with pages in the layer, now or in the past.
    pub fn stacks(&self) -> impl Iterator<Item = (u32, Amounts)> + '_ {
        self.totals.stacks().map(|(row, amounts)| (self.stacks[row as usize], amounts))
    }

    /// Ends a step of the sums ([`Totals::end_step`]).
    pub fn end_step(&mut self, spent: EndedStep) -> EndedStep {
        self.totals.end_step(spent)
    }

    /// Changes of stacks in a step that has just ended.
    pub fn changes<'t>(&'t self, step: &'t EndedStep) -> impl Iterator<Item = RowChange> + 't {
        self.totals.changes(step).map(|change| RowChange { stack: self.stacks[change.stack as usize], ..change })
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
    /// Returns the ranges for a forked child. Open calls of other threads never end in the child,
    /// and are left out.
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

/// Changes of one record to the sums. Losses of threads are applied at the end, because a thread
/// without ranges may be given up.
struct Edit<'t> {
    layers: &'t mut [Layer; 2],
    threads: &'t mut Threads,
    leavers: Vec<u32>,
    /// Layers with a final loss of pages.
    loses: [bool; 2],
}

impl Edit<'_> {
    fn come(&mut self, range: &Range) {
        let layer = &mut self.layers[usize::from(range.what.reserved)];
        let row = layer.row(range.what.stack);
        layer.totals.come(row, share(range.what), range.size());
        self.threads.gain(range.what.thread);
    }

    /// Removes a range from the sums, and adds the remaining parts of the range.
    fn cut(&mut self, part: Taken<Owner>) {
        let owner = part.whole.what;
        let Owner { stack, thread, reserved, .. } = owner;
        let layer = &mut self.layers[usize::from(reserved)];
        let row = layer.row(stack);
        layer.totals.go(row, share(owner), part.whole.size());
        self.leavers.push(thread);
        part.rest().for_each(|rest| self.come(&rest));
    }

    fn lose(&mut self, range: &Range) {
        self.loses[usize::from(range.what.reserved)] = true;
    }

    /// Counts a call with `bytes` new bytes.
    fn count(&mut self, owner: Owner, bytes: u64) {
        let layer = &mut self.layers[usize::from(owner.reserved)];
        let row = layer.row(owner.stack);
        layer.totals.count_alloc(row, share(owner), bytes);
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

    /// Adds a range of `owner`, unless the range is empty. Returns the bytes.
    fn put_between(&mut self, start: u64, end: u64, owner: Owner, edit: &mut Edit<'_>) -> u64 {
        if start >= end {
            return 0;
        }
        self.put(Piece { start, end, what: owner }, edit);
        end - start
    }

    /// Makes room for new pages. Leaving pages in this place have been given back, and are put
    /// aside.
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

    /// Ends an open call. Returns the ranges taken away by the call, by rising address.
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
    /// Applies a call: `pages` are mapped anew, over any earlier ranges.
    pub fn map(&mut self, pages: Pages, owner: Owner, threads: &mut Threads) {
        let (places, mut edit) = self.edit(threads);
        places.clear(pages, &mut edit);
        let bytes = places.put_between(pages.start(), pages.end(), owner, &mut edit);
        edit.count(owner, bytes);
        edit.finish();
    }

    /// Applies a call: `pages` become usable, or no longer usable. Changed pages belong to the
    /// call's stack from then on.
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

    /// Begins a call that may take `pages` away.
    pub fn unmap(&mut self, pages: Pages) -> Call {
        self.calls += 1;
        let number = self.calls;
        self.places.leaving.take(pages.start(), pages.end(), |_| ());
        self.places.leaving.insert(Piece { start: pages.start(), end: pages.end(), what: number });
        self.places.put_aside.insert(number, Aside::default());
        Call { pages, number }
    }

    /// Ends a call after the pages were taken away. Without the call's begin record nothing goes:
    /// the present owner may have been given the pages since.
    pub fn unmapped(&mut self, call: Option<Call>, threads: &mut Threads) {
        let (places, mut edit) = self.edit(threads);
        let taken = call.map_or_else(Vec::new, |call| places.end(call, &mut edit));
        taken.iter().for_each(|range| edit.lose(range));
        edit.finish();
        self.untracked_frees += u64::from(taken.is_empty());
    }

    /// Ends a failed call, or a call without an end record. Pages mapped over during the call are
    /// gone all the same.
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

    /// Ends a call after moving `old` to `new`. The new place may be shorter than the old, or
    /// longer by pages asked for by this call.
    ///
    /// Without the call's begin record nothing was moved: `old` stays unchanged, or was unknown.
    pub fn remapped(&mut self, call: Option<Call>, old: Pages, new: Pages, owner: Owner, threads: &mut Threads) {
        let (places, mut edit) = self.edit(threads);
        let moved = call.map_or_else(Vec::new, |call| places.end(call, &mut edit));
        let is_unknown = call.is_some() && moved.is_empty();
        // New pages have the protection of the last old page.
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

    /// Forgets all ranges. Later unmappings of forgotten ranges are untracked. The caller also
    /// clears the block counts of all threads.
    pub fn clear(&mut self) {
        self.places.live.clear();
        self.places.put_aside.values_mut().for_each(|aside| *aside = Aside::default());
        for layer in &mut self.layers {
            *layer = Layer { is_used: layer.is_used, ..Layer::default() };
        }
    }

    /// Changes the codes of all births.
    pub fn recode(&mut self, recoding: &Recoding) {
        let aside = self.places.put_aside.values_mut().flat_map(|aside| &mut aside.ranges).map(|range| &mut range.what);
        self.places.live.values_mut().chain(aside).for_each(|owner| owner.birth = recoding.of(owner.birth));
    }

    /// Moves the sums of an ended thread without ranges to a row of ended threads.
    pub fn fold(&mut self, thread: u32, ended: u32) {
        self.layers.iter_mut().for_each(|layer| layer.totals.fold(thread, ended));
    }

    /// Sets the peaks to the live amounts.
    pub fn reset_peak(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.totals.reset_peak());
    }

    /// Layers with ranges now or in the past.
    pub fn layers(&self) -> impl Iterator<Item = (Domain, &Layer)> {
        [Domain::Mmap, Domain::Reserved].into_iter().zip(&self.layers).filter(|(_, layer)| layer.is_used)
    }

    /// Layers with ranges now or in the past, for steps of their sums.
    pub fn layers_mut(&mut self) -> impl Iterator<Item = (Domain, &mut Layer)> {
        [Domain::Mmap, Domain::Reserved].into_iter().zip(&mut self.layers).filter(|(_, layer)| layer.is_used)
    }

    /// Ranges of a layer, as blocks.
    pub fn live(&self, domain: Domain) -> Vec<Block> {
        let ranges = self.places.live.iter().filter(|range| domain_of(range) == domain);
        ranges.map(|range| block(&range)).collect()
    }

    /// Returns the range around an address.
    pub fn find(&self, address: u64) -> Option<(Domain, Block)> {
        self.places.live.find(address).map(|range| (domain_of(&range), block(&range)))
    }

    /// Number of calls without a known page to take away.
    pub fn untracked_frees(&self) -> u64 {
        self.untracked_frees
    }

    /// Number of open calls that may take pages away.
    pub fn open_calls(&self) -> u64 {
        self.places.put_aside.len() as u64
    }

    fn edit<'t>(&'t mut self, threads: &'t mut Threads) -> (&'t mut Places, Edit<'t>) {
        (&mut self.places, Edit { layers: &mut self.layers, threads, leavers: Vec::new(), loses: [false; 2] })
    }
}

/// Returns the part of a range's thread in the sums. Ranges are never sampled.
fn share(owner: Owner) -> Share {
    Share { thread: owner.thread, weight: WHOLE }
}

fn domain_of(range: &Range) -> Domain {
    if range.what.reserved { Domain::Reserved } else { Domain::Mmap }
}

fn block(range: &Range) -> Block {
    let Owner { stack, thread, birth, .. } = range.what;
    Block { address: range.start, size: range.size(), stack, thread, birth, in_program: false }
}

#[cfg(test)]
mod tests;
