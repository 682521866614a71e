//! Random programs on a toy kernel with nothing but pages. The ranges get the records of a
//! collector.

use super::*;
use proptest::prelude::*;

const PAGES: usize = 48;
const THREADS: u32 = 3;

fn pages(from: usize, to: usize) -> Pages {
    Pages::covering(from as u64 * 4096, (to - from) as u64 * 4096).expect("whole pages")
}

/// A mapped page: the owner, and whether the page belongs to the same range as the page before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    owner: Owner,
    goes_on: bool,
}

/// Expected sums of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    size: u64,
    blocks: u64,
    allocs: u64,
    frees: u64,
    bytes: u64,
    peak: u64,
}

/// The address space, changed by whole calls.
#[derive(Clone)]
struct Kernel {
    pages: [Option<Page>; PAGES],
    sums: [Sums; 2],
    untracked: u64,
}

impl Kernel {
    /// Takes pages. Ranges are cut at both ends.
    fn take(&mut self, from: usize, to: usize) -> Vec<Option<Page>> {
        let mut taken: Vec<_> = self.pages[from..to].iter_mut().map(Option::take).collect();
        [taken.first_mut(), self.pages.get_mut(to)]
            .into_iter()
            .flatten()
            .flatten()
            .for_each(|page| page.goes_on = false);
        taken
    }

    fn put(&mut self, at: usize, new: &[Option<Page>]) {
        self.pages[at..at + new.len()].copy_from_slice(new);
    }

    fn count_alloc(&mut self, owner: Owner, n: usize) {
        let sums = &mut self.sums[usize::from(owner.reserved)];
        sums.allocs += 1;
        sums.bytes += n as u64 * 4096;
    }

    fn count_frees(&mut self, lost: &[Option<Page>]) {
        for (reserved, sums) in [false, true].into_iter().zip(&mut self.sums) {
            sums.frees += u64::from(lost.iter().flatten().any(|page| page.owner.reserved == reserved));
        }
    }

    fn fill(owner: Owner, n: usize) -> Vec<Option<Page>> {
        (0..n).map(|i| Some(Page { owner, goes_on: i > 0 })).collect()
    }

    fn map(&mut self, from: usize, to: usize, owner: Owner) {
        let lost = self.take(from, to);
        self.count_frees(&lost);
        self.put(from, &Kernel::fill(owner, to - from));
        self.count_alloc(owner, to - from);
    }

    fn protect(&mut self, from: usize, to: usize, owner: Owner) {
        let mut changed = 0;
        let mut before_changed = false;
        for at in from..to {
            let Some(page) = self.pages[at] else {
                before_changed = false;
                continue;
            };
            let changes = page.owner.reserved != owner.reserved;
            changed += usize::from(changes);
            let goes_on = page.goes_on && at > from && changes == before_changed;
            self.pages[at] = Some(Page {
                owner: if changes { owner } else { page.owner },
                goes_on: if changes { goes_on } else { page.goes_on },
            });
            before_changed = changes;
        }
        if before_changed && let Some(Some(page)) = self.pages.get_mut(to) {
            page.goes_on = false;
        }
        if changed > 0 {
            self.count_alloc(owner, changed);
            self.sums[usize::from(!owner.reserved)].frees += 1;
        }
    }

    fn unmap(&mut self, from: usize, to: usize) {
        let lost = self.take(from, to);
        self.count_frees(&lost);
        self.untracked += u64::from(lost.iter().all(Option::is_none));
    }

    fn remap(&mut self, from: usize, to: usize, new: usize, n: usize, owner: Owner) {
        let mut moved = self.take(from, to);
        self.untracked += u64::from(moved.iter().all(Option::is_none));
        let reserved = moved.last().copied().flatten().is_some_and(|page| page.owner.reserved);
        let mut lost = moved.split_off(n.min(to - from));
        lost.extend(self.take(new, new + n));
        self.count_frees(&lost);
        moved.resize(n, None);
        let owner = Owner { reserved, ..owner };
        let fresh = moved.iter().filter(|page| page.is_none()).count();
        if fresh > 0 {
            self.count_alloc(owner, fresh);
        }
        let mut after_gap = false;
        for page in &mut moved {
            let is_gap = page.is_none();
            *page = page.or(Some(Page { owner, goes_on: after_gap }));
            after_gap = is_gap;
        }
        self.put(new, &moved);
    }

    /// Counts live pages.
    fn look(&mut self) -> [Sums; 2] {
        for (reserved, sums) in [false, true].into_iter().zip(&mut self.sums) {
            let live = || self.pages.iter().flatten().filter(|page| page.owner.reserved == reserved);
            sums.size = live().count() as u64 * 4096;
            sums.blocks = live().filter(|page| !page.goes_on).count() as u64;
            sums.peak = sums.peak.max(sums.size);
        }
        self.sums
    }
}

/// Progress of a thread in a call that takes pages away.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The begin record is written.
    Begun,
    /// The kernel has done or refused the call, or moved the pages.
    Done(End),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Unmapped,
    Refused,
    Moved(usize, usize, Owner),
}

struct World {
    kernel: Kernel,
    ranges: Ranges,
    threads: Threads,
    open: Vec<Option<(Call, usize, usize, Stage)>>,
}

/// A step: thread, kind, place, number of pages, and other numbers.
type Step = (u32, u8, usize, usize, usize, u32, bool);

impl World {
    fn new() -> World {
        let mut threads = Threads::default();
        (0..THREADS).for_each(|tid| assert_eq!(threads.open(tid, false).index, tid));
        let kernel = Kernel { pages: [None; PAGES], sums: Default::default(), untracked: 0 };
        World { kernel, ranges: Ranges::default(), threads, open: vec![None; THREADS as usize] }
    }

    /// Whether a sensible program leaves these pages alone, because of a thread other than `but`.
    /// Such a thread is in one of these states:
    ///
    /// - about to give the pages back
    /// - failed to give the pages back, without an end record so far
    /// - given the pages, without an end record so far
    fn is_open(&self, from: usize, to: usize, but: Option<u32>) -> bool {
        let others = self.open.iter().zip(0..).filter(|&(_, thread)| Some(thread) != but);
        let mut places = others.filter_map(|(open, _)| match *open {
            Some((_, a, b, Stage::Begun | Stage::Done(End::Refused))) => Some((a, b)),
            Some((.., Stage::Done(End::Moved(new, n, _)))) => Some((new, new + n)),
            _ => None,
        });
        places.any(|(a, b)| a < to && from < b)
    }

    /// Whether the kernel has taken some of these pages already in a call without an end record so
    /// far. No thread protects or unmaps such pages.
    fn is_stale(&self, from: usize, to: usize) -> bool {
        let mut places = self.open.iter().flatten().filter(|(.., stage)| matches!(stage, Stage::Done(_)));
        places.any(|&(_, a, b, _)| (a.max(from)..b.min(to)).any(|at| self.kernel.pages[at].is_none()))
    }

    fn is_free(&self, from: usize, to: usize) -> bool {
        self.kernel.pages[from..to].iter().all(Option::is_none)
    }

    fn step(&mut self, (thread, what, from, n, new, stack, flag): Step) {
        let to = (from + n).min(PAGES);
        let owner = Owner { stack, thread, birth: Birth::default(), reserved: flag };
        match self.open[thread as usize] {
            Some((call, from, to, Stage::Begun)) => {
                let end = self.act(from, to, what, new, n, owner);
                self.open[thread as usize] = Some((call, from, to, Stage::Done(end)));
            }
            Some((call, from, to, Stage::Done(end))) => {
                self.open[thread as usize] = None;
                match end {
                    End::Unmapped => self.ranges.unmapped(Some(call), &mut self.threads),
                    End::Refused => self.ranges.kept(call, &mut self.threads),
                    End::Moved(new, n, owner) => {
                        let (old, new) = (pages(from, to), pages(new, new + n));
                        self.ranges.remapped(Some(call), old, new, owner, &mut self.threads);
                    }
                }
            }
            // No thread touches pages that another thread is about to give back. The kernel hands
            // out only free pages.
            None if self.is_open(from, to, None) || (what % 4 == 0 && !flag && !self.is_free(from, to)) => {}
            None if what % 4 > 1 && self.is_stale(from, to) => {}
            None => match what % 4 {
                0 | 1 => {
                    self.kernel.map(from, to, owner);
                    self.ranges.map(pages(from, to), owner, &mut self.threads);
                }
                2 => {
                    self.kernel.protect(from, to, owner);
                    self.ranges.protect(pages(from, to), owner, &mut self.threads);
                }
                _ => {
                    let call = self.ranges.unmap(pages(from, to));
                    self.open[thread as usize] = Some((call, from, to, Stage::Begun));
                }
            },
        }
    }

    /// The kernel carries out an open call.
    fn act(&mut self, from: usize, to: usize, what: u8, new: usize, n: usize, owner: Owner) -> End {
        let in_place = what.is_multiple_of(3);
        let new = if in_place { from } else { new };
        let n = n.min(PAGES - new);
        let overlaps = !in_place && new < to && from < new + n;
        let grows_into = if in_place { to..(new + n).max(to) } else { new..new + n };
        match what % 8 {
            0 => End::Refused,
            1 | 2 => {
                self.kernel.unmap(from, to);
                End::Unmapped
            }
            _ if overlaps || self.is_open(grows_into.start, grows_into.end, Some(owner.thread)) => End::Refused,
            _ if in_place && !self.is_free(grows_into.start, grows_into.end) => End::Refused,
            _ => {
                self.kernel.remap(from, to, new, n, owner);
                End::Moved(new, n, owner)
            }
        }
    }

    fn is_quiet(&self) -> bool {
        self.open.iter().all(Option::is_none)
    }

    /// Compares the ranges with the pages of the kernel.
    fn check(&mut self, peaks: bool) -> Result<(), TestCaseError> {
        let mut wanted = Vec::new();
        for (at, page) in self.kernel.pages.iter().enumerate() {
            let Some(page) = page else { continue };
            match wanted.last_mut() {
                Some(Piece { end, .. }) if page.goes_on => *end += 4096,
                _ => wanted.push(Piece { start: at as u64 * 4096, end: (at as u64 + 1) * 4096, what: page.owner }),
            }
        }
        prop_assert_eq!(self.ranges.places.live.iter().collect::<Vec<_>>(), wanted);
        prop_assert_eq!(self.ranges.untracked_frees(), self.kernel.untracked);
        for (domain, layer) in self.ranges.layers() {
            let totals = layer.totals();
            let mut sums = self.kernel.look()[usize::from(domain == Domain::Reserved)];
            if !peaks {
                sums.peak = totals.peak();
            }
            let (current, total) = (totals.current(), totals.total());
            let found = Sums {
                size: current.size,
                blocks: current.count,
                allocs: total.count,
                frees: totals.frees(),
                bytes: total.size,
                peak: totals.peak(),
            };
            prop_assert_eq!(found, sums, "{}", domain);
            let live = self.ranges.live(domain);
            for (stack, amounts) in layer.stacks() {
                let of_stack = || live.iter().filter(|block| block.stack == stack);
                let size = of_stack().map(|block| block.size).sum::<u64>();
                prop_assert_eq!((amounts.current.size, amounts.current.count), (size, of_stack().count() as u64));
            }
            for block in live {
                prop_assert_eq!(self.ranges.find(block.address + block.size - 1), Some((domain, block)));
            }
        }
        prop_assert!(self.ranges.places.leaving.iter().next().is_none() || !self.is_quiet());
        Ok(())
    }

    fn finish_calls(&mut self) {
        for thread in 0..THREADS {
            while self.open[thread as usize].is_some() {
                self.step((thread, 0, 0, 1, 0, 0, false));
            }
        }
    }

    /// Unmaps everything and ends the threads: no thread may be kept by a range.
    fn end(&mut self) -> Result<(), TestCaseError> {
        let call = self.ranges.unmap(pages(0, PAGES));
        self.ranges.unmapped(Some(call), &mut self.threads);
        (0..THREADS).for_each(|thread| self.threads.close(thread));
        prop_assert!(self.threads.rows().iter().all(|thread| !thread.is_needed()));
        prop_assert!(self.ranges.layers().all(|(_, layer)| layer.totals().current().size == 0));
        prop_assert_eq!(self.ranges.open_calls(), 0);
        Ok(())
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..THREADS, any::<u8>(), 0..PAGES, 1..12_usize, 0..PAGES, 0..4_u32, any::<bool>());
    prop::collection::vec(step, 0..120)
}

proptest! {
    #[test]
    fn one_call_after_the_other_leaves_what_the_kernel_has(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            let open = world.open[step.0 as usize].is_some();
            if open {
                world.step(step);
                world.step(step);
            }
            world.kernel.look();
            world.check(true)?;
        }
        world.end()?;
    }

    #[test]
    fn calls_of_several_threads_leave_what_the_kernel_has(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            if world.is_quiet() {
                world.check(false)?;
            }
        }
        world.finish_calls();
        world.check(false)?;
        world.end()?;
    }
}

fn owner(stack: u32, reserved: bool) -> Owner {
    Owner { stack, thread: 0, birth: Birth::default(), reserved }
}

fn world_of(maps: &[(usize, usize, Owner)]) -> (Ranges, Threads) {
    let (mut ranges, mut threads) = (Ranges::default(), Threads::default());
    (0..2).for_each(|tid| assert_eq!(threads.open(tid, false).index, tid));
    maps.iter().for_each(|&(from, to, owner)| ranges.map(pages(from, to), owner, &mut threads));
    (ranges, threads)
}

fn current(ranges: &Ranges, domain: Domain) -> (u64, u64) {
    let layer = ranges.layers().find(|(found, _)| *found == domain);
    layer.map_or((0, 0), |(_, layer)| (layer.totals().current().size / 4096, layer.totals().current().count))
}

/// The record of the other thread comes before the end record of the call that freed the pages.
#[test]
fn pages_that_another_thread_is_given_meanwhile_are_its_own() {
    let (mut ranges, mut threads) = world_of(&[(0, 10, owner(1, false))]);
    let call = ranges.unmap(pages(0, 10));
    assert_eq!(current(&ranges, Domain::Mmap), (10, 1), "until the end record");
    ranges.map(pages(2, 5), Owner { thread: 1, ..owner(2, false) }, &mut threads);
    ranges.unmapped(Some(call), &mut threads);
    assert_eq!(
        ranges.live(Domain::Mmap).iter().map(|block| (block.stack, block.size)).collect::<Vec<_>>(),
        [(2, 3 * 4096)]
    );
    assert_eq!(ranges.untracked_frees(), 0);
    // The pages are given to a second thread in turn.
    let mine = ranges.unmap(pages(2, 5));
    ranges.map(pages(2, 3), owner(3, false), &mut threads);
    let again = ranges.unmap(pages(2, 3));
    ranges.map(pages(2, 3), owner(4, false), &mut threads);
    ranges.unmapped(Some(mine), &mut threads);
    ranges.unmapped(Some(again), &mut threads);
    assert_eq!(ranges.live(Domain::Mmap).iter().map(|block| block.stack).collect::<Vec<_>>(), [4]);
}

#[test]
fn what_moves_while_its_old_place_is_given_away_keeps_its_stacks() {
    let (mut ranges, mut threads) = world_of(&[(0, 4, owner(1, false)), (4, 8, owner(2, false))]);
    let call = ranges.unmap(pages(0, 8));
    ranges.map(pages(2, 6), Owner { thread: 1, ..owner(3, false) }, &mut threads);
    ranges.remapped(Some(call), pages(0, 8), pages(20, 30), owner(4, false), &mut threads);
    let live = ranges.live(Domain::Mmap);
    let found: Vec<_> = live.iter().map(|block| (block.address / 4096, block.size / 4096, block.stack)).collect();
    assert_eq!(found, [(2, 4, 3), (20, 4, 1), (24, 4, 2), (28, 2, 4)], "as if nobody had cut them");
    let (_, layer) = ranges.layers().next().expect("memory");
    assert_eq!((layer.totals().frees(), layer.totals().total().count), (0, 4), "a move is neither");
}

#[test]
fn a_call_that_failed_has_taken_nothing() {
    let (mut ranges, mut threads) = world_of(&[(0, 4, owner(1, false))]);
    let call = ranges.unmap(pages(1, 3));
    ranges.kept(call, &mut threads);
    assert_eq!(current(&ranges, Domain::Mmap), (4, 1));
    let (_, layer) = ranges.layers().next().expect("memory");
    assert_eq!((layer.totals().frees(), ranges.untracked_frees(), ranges.open_calls()), (0, 0, 0));
}

#[test]
fn what_was_mapped_before_the_trace_is_untracked() {
    let (mut ranges, mut threads) = world_of(&[]);
    let call = ranges.unmap(pages(0, 4));
    ranges.unmapped(Some(call), &mut threads);
    assert_eq!(ranges.untracked_frees(), 1);
    ranges.protect(pages(0, 4), owner(1, true), &mut threads);
    assert_eq!(ranges.layers().count(), 0);
    // After a move the pages are known.
    let call = ranges.unmap(pages(0, 4));
    ranges.remapped(Some(call), pages(0, 4), pages(10, 18), owner(2, false), &mut threads);
    assert_eq!((current(&ranges, Domain::Mmap), ranges.untracked_frees()), ((8, 1), 2));
    // An end record without a begin record, by a thread with no earlier record.
    ranges.unmapped(None, &mut threads);
    assert_eq!((current(&ranges, Domain::Mmap), ranges.untracked_frees()), ((8, 1), 3));
}

#[test]
fn a_mapping_that_is_mapped_twice_leaves_the_first() {
    let (mut ranges, mut threads) = world_of(&[(0, 4, owner(1, false))]);
    ranges.remapped(None, pages(0, 0), pages(10, 14), owner(2, false), &mut threads);
    assert_eq!(current(&ranges, Domain::Mmap), (8, 2));
    assert_eq!(ranges.untracked_frees(), 0);
}

#[test]
fn reservations_are_memory_once_they_may_be_used() {
    let (mut ranges, mut threads) = world_of(&[(0, 100, owner(1, true))]);
    assert_eq!([Domain::Mmap, Domain::Reserved].map(|domain| current(&ranges, domain)), [(0, 0), (100, 1)]);
    ranges.protect(pages(10, 20), owner(2, false), &mut threads);
    ranges.protect(pages(15, 25), owner(3, false), &mut threads);
    assert_eq!([Domain::Mmap, Domain::Reserved].map(|domain| current(&ranges, domain)), [(15, 2), (85, 2)]);
    ranges.protect(pages(0, 100), owner(4, true), &mut threads);
    assert_eq!([Domain::Mmap, Domain::Reserved].map(|domain| current(&ranges, domain)), [(0, 0), (100, 4)]);
    let counts: Vec<_> = ranges.layers().map(|(_, layer)| (layer.totals().total(), layer.totals().frees())).collect();
    let amount = |pages: u64, count| super::super::totals::Amount { size: pages * 4096, count };
    assert_eq!(counts, [(amount(15, 2), 1), (amount(115, 2), 2)]);
}

#[test]
fn peaks_and_clearing() {
    let (mut ranges, mut threads) = world_of(&[(0, 10, owner(1, false))]);
    ranges.map(pages(0, 10), owner(2, false), &mut threads);
    let call = ranges.unmap(pages(0, 8));
    ranges.unmapped(Some(call), &mut threads);
    let of = |ranges: &Ranges| {
        let (_, layer) = ranges.layers().next().expect("memory");
        let peaks: Vec<_> = layer.stacks().map(|(stack, amounts)| (stack, amounts.peak.size / 4096)).collect();
        (layer.totals().peak() / 4096, peaks)
    };
    assert_eq!(of(&ranges), (10, vec![(1, 10), (2, 0)]), "mapped over, never both");
    ranges.reset_peak();
    assert_eq!(of(&ranges), (2, vec![(1, 0), (2, 2)]));
    ranges.clear();
    threads.lose_all();
    assert_eq!(of(&ranges), (0, vec![]));
    let call = ranges.unmap(pages(8, 10));
    ranges.unmapped(Some(call), &mut threads);
    assert_eq!((ranges.untracked_frees(), current(&ranges, Domain::Mmap)), (1, (0, 0)));
}
