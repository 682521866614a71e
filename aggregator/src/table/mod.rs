//! What the records add up to: the live blocks with their threads and tracebacks, and the sums.
//!
//! [`Table`] applies the records in the order that [`crate::table::order`] gives them, and answers at any point between two
//! of them. It reads no clock and no file.

pub mod blocks;
pub mod codes;
pub mod contradiction;
pub mod fork_copies;
pub mod forks;
pub mod heap;
pub mod intervals;
pub mod live;
mod mapping;
pub mod messages;
pub mod modules;
pub mod order;
pub mod program;
pub mod ranges;
mod resolvers;
pub mod shared;
pub mod stacks;
pub mod threads;
pub mod totals;

use crate::table::contradiction::{Contradiction, Contradictions};
use crate::table::order::{Corrupt, Sink};
use blocks::Call;
use codes::{Codes, Partial};
use forks::Forks;
use heap::Heap;
use heapline_shared_format::event::{Event, domain};
use heapline_shared_format::query;
use heapline_shared_format::snapshot::{Domain, weight};
use live::Block;
use modules::{Loaded, Modules, Object};
use program::Text;
use ranges::Ranges;
use shared::Shared;
use stacks::{Definition, Definitions, Stacks};
use std::collections::{BTreeMap, BTreeSet};
use threads::Threads;

/// Objects with recorded allocators that are kept.
const MOST_RECORDED: usize = 1024;

/// See the module.
pub struct Table {
    /// The native one.
    heap: Heap,
    /// From its first event on.
    python: Option<Box<Heap>>,
    /// What programs track by hand, by tracemalloc's number.
    tracked: BTreeMap<u32, Heap>,
    /// What the program has mapped.
    ranges: Ranges,
    resolvers: usize,
    stacks: Stacks,
    codes: Codes,
    modules: Modules,
    shared: Shared,
    queries: u64,
    answer: Option<Answered>,
    contradictions: Contradictions,
    records: u64,
    /// Path of the program, as it told itself.
    program: Option<String>,
    /// Paths of objects whose own allocators' blocks are recorded.
    recorded: BTreeSet<String>,
    /// Where copies for forked children go.
    forks: Option<Forks>,
    /// The program was seen from its first event on, and no block was forgotten since.
    is_whole: bool,
}

/// What the target asked last, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Number of the query.
    pub number: u32,
    /// The answer.
    pub answer: Answer,
}

/// An answer to the target ([`heapline_shared_format::query`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was asked for is done, or there was nothing to do.
    Done,
    /// The sums now and at the peak.
    Sums([u64; 2]),
    /// A new text.
    Text(Vec<u8>),
    /// The last text's part from a byte on.
    More(u64),
    /// What Heapline takes in the target.
    OwnMemory,
}

/// Domains that a program may track by hand; more are not told apart, which is counted.
const MAX_TRACKED: usize = 256;

/// What the table remembers of a ring.
#[derive(Debug)]
pub struct Ring {
    thread: u32,
    /// What it allocates now is none of the program's own trace.
    hides: bool,
    /// The blocks that it records are samples at this distance; 0 for all.
    interval: u64,
    definitions: Definitions,
    code: Partial,
    /// By domain: an inner layer's realloc may be part of an outer one's.
    realloc: [Option<Call>; domain::COUNT],
    /// Calls that take pages away, the oldest first: a signal handler's may come between another's two records.
    unmaps: Vec<ranges::Call>,
}

impl Ring {
    /// Index of its thread.
    pub fn thread(&self) -> u32 {
        self.thread
    }
}

impl Table {
    /// An empty table that keeps the most recent `nframe` frames of each traceback, with so many threads to look blocks
    /// up besides the calling one.
    pub fn new(nframe: u32, resolvers: usize) -> Table {
        Table {
            heap: Heap::new(resolvers),
            python: None,
            tracked: BTreeMap::new(),
            ranges: Ranges::default(),
            resolvers,
            stacks: Stacks::new(nframe),
            codes: Codes::default(),
            modules: Modules::default(),
            shared: Shared::default(),
            queries: 0,
            answer: None,
            contradictions: Contradictions::default(),
            records: 0,
            program: None,
            recorded: BTreeSet::new(),
            forks: None,
            is_whole: true,
        }
    }

    /// Forks are to be heeded from now on.
    pub fn set_forks(&mut self, forks: Option<Forks>) {
        self.forks = forks;
    }

    /// Its place in the tree, for the table of the process's next program.
    pub fn take_forks(&mut self) -> Option<Forks> {
        self.forks.take()
    }

    /// A thread begins a ring.
    pub fn ring(&mut self, tid: u32, side: bool) -> Ring {
        Ring {
            thread: self.shared.threads.open(tid, side),
            hides: false,
            interval: 0,
            definitions: Definitions::default(),
            code: Partial::default(),
            realloc: [None; domain::COUNT],
            unmaps: Vec::new(),
        }
    }

    /// Forgets all traces; tracing goes on.
    pub fn clear_traces(&mut self) {
        self.catch_up();
        let (heaps, shared) = self.parts();
        heaps.for_each(|heap| heap.clear(shared));
        self.ranges.clear();
        self.is_whole = false;
    }

    /// The program ran before it was seen.
    pub fn begins_late(&mut self) {
        self.is_whole = false;
    }

    /// Frees of blocks that it does not know, and that need an explanation. An interpreter that is seen from its start frees
    /// some that it allocated before it could have other allocators than its own.
    pub fn untracked_frees(&self) -> u64 {
        let is_expected = |domain| self.is_whole && domain == Domain::Python;
        let heaps = self.heaps().filter(|&(domain, _)| !is_expected(domain));
        heaps.map(|(_, heap)| heap.untracked_frees()).sum::<u64>() + self.ranges.untracked_frees()
    }

    /// The peak becomes what is live now.
    pub fn reset_peak(&mut self) {
        let (heaps, shared) = self.parts();
        heaps.for_each(|heap| heap.reset_peak(shared));
        self.ranges.reset_peak();
    }

    /// Native blocks and sums.
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// What the program has mapped.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// All layers of blocks that were recorded; the native one always is.
    pub fn heaps(&self) -> impl Iterator<Item = (Domain, &Heap)> {
        let python = self.python.as_deref().map(|heap| (Domain::Python, heap));
        let tracked = self.tracked.iter().map(|(&number, heap)| (Domain::Track(number), heap));
        std::iter::once((Domain::Native, &self.heap)).chain(python).chain(tracked)
    }

    /// Python code objects.
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// Tracebacks.
    pub fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    /// Loaded objects.
    pub fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Threads.
    pub fn threads(&self) -> &Threads {
        &self.shared.threads
    }

    /// Threads, to name them.
    pub fn threads_mut(&mut self) -> &mut Threads {
        &mut self.shared.threads
    }

    /// What cannot have happened.
    pub fn contradictions(&self) -> Contradictions {
        let mut all = self.contradictions.clone();
        self.heaps().for_each(|(_, heap)| all.add(&heap.contradictions()));
        all
    }

    /// Paths of objects whose own allocators' blocks are recorded.
    pub fn recorded(&self) -> &BTreeSet<String> {
        &self.recorded
    }

    /// Path of the program, once it has told it.
    pub fn program(&self) -> Option<&str> {
        self.program.as_deref()
    }

    /// Questions of the target's that were answered.
    pub fn queries(&self) -> u64 {
        self.queries
    }

    /// The answer to the target's last question, if it has not been taken yet.
    pub fn take_answer(&mut self) -> Option<Answered> {
        self.answer.take()
    }

    /// Calls of allocators that were recorded.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The block, and the domain that its stack was defined for.
    #[inline]
    fn block(&mut self, ring: &Ring, address: u64, size: u64, stack: u32) -> (Block, u8) {
        let (mut stack, domain) = self.stack(ring, stack);
        let mut size = size;
        if ring.interval != 0 {
            (stack, size) = self.sample(stack, ring.interval, size);
        }
        let in_program = domain != domain::NATIVE && self.shared.program.is_on() && !ring.hides;
        (Block { address, size, stack, thread: ring.thread, in_program }, domain)
    }

    /// The stack of a block that is a sample, and the bytes that it stands for.
    #[cold]
    fn sample(&mut self, stack: u32, interval: u64, size: u64) -> (u32, u64) {
        let sampled = self.stacks.sampled(stack, interval, size);
        if sampled.is_none() {
            self.contradictions.count(Contradiction::Full);
        }
        (sampled.unwrap_or(stack), weight::bytes(size, interval))
    }

    /// Another stack for a block that may be a sample.
    fn of_same_kind(&mut self, domain: u8, block: Block) -> Result<Block, Corrupt> {
        self.catch_up();
        let (heap, _) = self.heap_of(domain)?;
        let before = heap.block(block.address);
        let sample = before.and_then(|before| self.stacks.sample(before.stack));
        let stack = sample.and_then(|sample| self.stacks.sampled(block.stack, sample.interval, sample.size));
        Ok(Block { stack: stack.unwrap_or(block.stack), ..block })
    }

    /// A ring's stack, and the domain that it was defined for.
    #[inline]
    fn stack(&mut self, ring: &Ring, stack: u32) -> (u32, u8) {
        ring.definitions.get(stack).unwrap_or_else(|| {
            self.contradictions.count(Contradiction::UnknownStack);
            (stacks::EMPTY, domain::NATIVE)
        })
    }

    /// The heap of a domain that a record names, and what moves with it.
    fn heap_of(&mut self, domain: u8) -> Result<(&mut Heap, &mut Shared), Corrupt> {
        let resolvers = self.resolvers;
        let heap = match domain {
            domain::NATIVE => &mut self.heap,
            domain::PYTHON => &mut **self.python.get_or_insert_with(|| Box::new(Heap::new(resolvers))),
            _ => return Err(Corrupt),
        };
        Ok((heap, &mut self.shared))
    }

    #[inline(never)]
    fn alloc_other(&mut self, block: Block, domain: u8) -> Result<(), Corrupt> {
        let (heap, shared) = self.heap_of(domain)?;
        heap.alloc(block, shared);
        Ok(())
    }

    #[inline(never)]
    fn free_other(&mut self, address: u64, domain: u8) -> Result<(), Corrupt> {
        let (heap, shared) = self.heap_of(domain)?;
        heap.free(address, shared);
        Ok(())
    }

    /// All heaps, and what moves with them.
    fn parts(&mut self) -> (impl Iterator<Item = &mut Heap>, &mut Shared) {
        let heaps = std::iter::once(&mut self.heap).chain(self.python.as_deref_mut()).chain(self.tracked.values_mut());
        (heaps, &mut self.shared)
    }

    /// A program says what it has allocated by itself. The sums of the program's own trace go over all domains, in the order
    /// of events.
    fn track(&mut self, domain: u32, block: Block) {
        if domain != 0 && !self.tracked.contains_key(&domain) {
            if self.tracked.len() == MAX_TRACKED {
                self.contradictions.count(Contradiction::Full);
                return;
            }
            self.tracked.insert(domain, Heap::new(0));
        }
        self.untrack(domain, block.address);
        let Some((heap, shared)) = self.tracked_heap(domain) else { return };
        heap.alloc(block, shared);
        heap.catch_up(shared);
    }

    fn untrack(&mut self, domain: u32, address: u64) {
        self.catch_up();
        let Some((heap, shared)) = self.tracked_heap(domain) else { return };
        heap.forget(address, shared);
        heap.catch_up(shared);
    }

    /// The heap of a domain by tracemalloc's number, once something was tracked in it.
    fn tracked_heap(&mut self, domain: u32) -> Option<(&mut Heap, &mut Shared)> {
        if domain == 0 {
            return self.heap_of(domain::PYTHON).ok();
        }
        Some((self.tracked.get_mut(&domain)?, &mut self.shared))
    }

    /// The heaps that the program's own trace goes over, by tracemalloc's number.
    fn program_heaps(&self) -> impl Iterator<Item = (u32, &Heap)> {
        let tracked = self.tracked.iter().map(|(&number, heap)| (number, heap));
        self.python.as_deref().map(|heap| (0, heap)).into_iter().chain(tracked)
    }

    /// Carries out what the target's `tracemalloc` asks for. None for what no collector asks.
    fn query(&mut self, asked: u32, arguments: [u64; 2]) -> Option<Answer> {
        let [first, second] = arguments;
        match asked {
            query::START => {
                self.shared.program.start(first);
                self.stacks.keep_python(self.shared.program.nframe());
            }
            query::STOP | query::CLEAR => {
                let (heaps, shared) = self.parts();
                heaps.for_each(|heap| heap.leave_program(shared));
                if asked == query::STOP { shared.program.stop() } else { shared.program.clear() }
            }
            query::RESET_PEAK => self.shared.program.reset_peak(),
            query::TRACED_MEMORY => return Some(Answer::Sums(self.shared.program.sums())),
            query::TRACES => {
                let mut text = self.text();
                for (domain, heap) in self.program_heaps() {
                    let blocks = heap.live().into_iter().filter(|block| block.in_program);
                    blocks.for_each(|block| text.trace(domain, &block));
                }
                return Some(Answer::Text(text.write()));
            }
            query::TRACEBACK => {
                let mut text = self.text();
                let heap = self.program_heaps().find(|&(domain, _)| u64::from(domain) == second);
                let block = heap.and_then(|(_, heap)| heap.block(first));
                if let Some(block) = block.filter(|block| block.in_program) {
                    text.traceback(block.stack);
                }
                return Some(Answer::Text(text.write()));
            }
            query::MORE => return Some(Answer::More(first)),
            query::OWN_MEMORY => return Some(Answer::OwnMemory),
            _ => return None,
        }
        Some(Answer::Done)
    }

    fn text(&self) -> Text<'_> {
        Text::new(&self.stacks, &self.codes, self.shared.program.nframe())
    }

    fn load(&mut self, object: Object) {
        match self.modules.load(object) {
            Loaded::Already => {}
            Loaded::Full => self.contradictions.count(Contradiction::Full),
            Loaded::Now { module, displaced } => {
                displaced.into_iter().for_each(|other| self.seal(other));
                self.stacks.unseal(module);
            }
        }
    }

    fn seal(&mut self, module: u32) {
        if let Some(object) = self.modules.objects().get(module as usize) {
            self.stacks.seal(module, object.start, object.end);
        }
    }

    fn define(&mut self, ring: &mut Ring, definition: Definition<'_>) -> Result<(), Corrupt> {
        if !self.stacks.define(&mut ring.definitions, definition)? {
            self.contradictions.count(Contradiction::Full);
        }
        Ok(())
    }
}

impl Sink for Table {
    type Ring = Ring;

    #[inline(always)]
    fn apply(&mut self, ring: &mut Ring, event: Event<'_>) -> Result<(), Corrupt> {
        match event {
            Event::Alloc { address, size, stack, .. } => {
                let (block, domain) = self.block(ring, address, size, stack);
                self.records += 1;
                if domain != domain::NATIVE {
                    return self.alloc_other(block, domain);
                }
                self.heap.alloc(block, &mut self.shared);
                Ok(())
            }
            Event::Free { address, domain, .. } => {
                self.records += 1;
                if domain != domain::NATIVE {
                    return self.free_other(address, domain);
                }
                self.heap.free(address, &mut self.shared);
                Ok(())
            }
            _ => self.apply_rare(ring, event),
        }
    }

    fn close(&mut self, ring: Ring) {
        // The thread's row may be given up: what waits may still name it.
        self.catch_up();
        self.shared.threads.close(ring.thread);
    }

    fn catch_up(&mut self) {
        let (heaps, shared) = self.parts();
        heaps.for_each(|heap| heap.catch_up(shared));
    }

    fn contradiction(&mut self, kind: Contradiction) {
        self.contradictions.count(kind);
    }
}

impl Table {
    /// What is no part of the inner loop.
    #[inline(never)]
    fn apply_rare(&mut self, ring: &mut Ring, event: Event<'_>) -> Result<(), Corrupt> {
        match event {
            Event::Realloc { address, domain, .. } => {
                self.records += 1;
                let before = *ring.realloc.get(domain as usize).ok_or(Corrupt)?;
                if before.is_some() {
                    self.contradictions.count(Contradiction::Realloc);
                }
                let (heap, shared) = self.heap_of(domain)?;
                ring.realloc[domain as usize] = Some(heap.realloc(address, before, shared));
            }
            Event::Reallocated { address, size, stack, .. } => {
                let (block, domain) = self.block(ring, address, size, stack);
                self.records += 1;
                let (heap, shared) = self.heap_of(domain)?;
                heap.reallocated(ring.realloc[domain as usize].take(), block, shared);
            }
            Event::ReallocEnd { freed, domain, .. } => {
                self.records += 1;
                let (heap, shared) = self.heap_of(domain)?;
                heap.realloc_ended(ring.realloc[domain as usize].take(), freed, shared);
            }
            Event::Code { id, more, text } => {
                if !self.codes.describe(&mut ring.code, id, more, text.bytes())? {
                    self.contradictions.count(Contradiction::Full);
                }
            }
            Event::Stack { id, keep, total, truncated, more, domain, frames } => {
                return self.define(ring, Definition { id, keep, total, truncated, more, domain, frames });
            }
            Event::Module { start, end, bias, flags, build_id, path, .. } => {
                let (path, build_id): (Vec<u8>, _) = (path.bytes().collect(), build_id.bytes().collect());
                if flags.is_program && !path.is_empty() {
                    self.program = Some(String::from_utf8_lossy(&path).into_owned());
                }
                if flags.is_recorded && self.recorded.len() < MOST_RECORDED {
                    self.recorded.insert(String::from_utf8_lossy(&path).into_owned());
                }
                self.load(Object { path, build_id, start, end, bias });
            }
            Event::Unload { start, .. } => {
                if let Some(module) = self.modules.unload(start) {
                    self.seal(module);
                }
            }
            Event::Thread { name, .. } => self.shared.threads.name(ring.thread, text(&name)),
            Event::Mixed { id, native, python } => {
                if !self.stacks.mix(&mut ring.definitions, id, native, python)? {
                    self.contradictions.count(Contradiction::Full);
                }
            }
            Event::Reuse { address, stack, .. } => {
                let interval = std::mem::take(&mut ring.interval);
                let (mut block, domain) = self.block(ring, address, 0, stack);
                ring.interval = interval;
                if interval != 0 {
                    block = self.of_same_kind(domain, block)?;
                }
                let (heap, shared) = self.heap_of(domain)?;
                heap.reuse(block, shared);
            }
            Event::Track { domain, address, size, stack, .. } => {
                // All of these are recorded.
                let interval = std::mem::take(&mut ring.interval);
                let (block, _) = self.block(ring, address, size, stack);
                ring.interval = interval;
                self.track(domain, block);
            }
            Event::Untrack { domain, address, .. } => self.untrack(domain, address),
            Event::Query { asked: query::INTERVAL, arguments: [interval, _], .. } => ring.interval = interval,
            Event::Query { asked: query::HIDE, .. } => ring.hides = true,
            Event::Query { asked: query::SHOW, .. } => ring.hides = false,
            Event::Query { asked: query::UNSEEN, .. } => {
                let (heap, shared) = self.heap_of(domain::PYTHON)?;
                heap.forget_frees(shared);
            }
            Event::Query { asked: what @ (query::FORK | query::FORKED | query::CHILD), arguments, .. } => {
                self.forked(what, arguments);
            }
            Event::Query { number, asked, arguments, .. } => {
                // Who asks waits for the answer.
                if self.answer.is_some() {
                    return Err(Corrupt);
                }
                self.catch_up();
                self.queries += 1;
                self.answer = Some(Answered { number, answer: self.query(asked, arguments).ok_or(Corrupt)? });
            }
            Event::Mapping { mapping, .. } => self.mapping(ring, mapping),
            // The others are the inner loop's.
            Event::Pad | Event::Alloc { .. } | Event::Free { .. } => {}
        }
        Ok(())
    }
}

/// The text of a field that is padded with zeros.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests;
