//! The sums of all records: live blocks with threads and tracebacks, and totals.
//!
//! [`Table`] applies records in the order given by [`crate::table::order`]. A table can be read
//! between any two records. The table uses no clock and no file.

pub mod blocks;
pub mod codes;
pub mod contradiction;
mod copies;
pub mod copy;
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
pub mod said;
pub mod seed;
pub mod shared;
pub mod stacks;
pub mod steps;
#[cfg(test)]
mod stream;
pub mod threads;
pub mod totals;
pub mod weights;

use crate::table::contradiction::{Contradiction, Contradictions};
use crate::table::order::{Corrupt, Sink};
use blocks::Call;
use codes::{Codes, Partial};
use forks::Forks;
use heap::Heap;
use heapline_shared_format::event::{Event, Tracked, domain};
use heapline_shared_format::query;
use heapline_shared_format::snapshot::{Domain, weight};
use live::Block;
use modules::{Loaded, Modules, Object};
use program::Text;
use ranges::Ranges;
use said::{Said, Voice};
use shared::Shared;
use stacks::{Definition, Definitions, Stacks};
use std::collections::{BTreeMap, BTreeSet};
use threads::{Opened, Threads};

/// Most paths kept of objects with recorded allocators.
const MOST_RECORDED: usize = 1024;

/// Live blocks, mapped ranges, tracebacks, threads and sums of one program.
pub struct Table {
    /// Blocks of the native domain.
    heap: Heap,
    /// Blocks of Python's domain. None before the first event of that domain.
    python: Option<Box<Heap>>,
    /// Blocks tracked by hand, by domain: tracemalloc's domains, and the program's pools.
    tracked: BTreeMap<Domain, Heap>,
    /// What the program says of itself.
    said: Said,
    /// Ranges mapped by the program.
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
    /// Path of the program, as reported by the collector.
    program: Option<String>,
    /// Paths of objects with allocators of their own, if the blocks of these are recorded.
    recorded: BTreeSet<String>,
    /// Receiver of the copies for forked children.
    forks: Option<Forks>,
    /// Children forked since the last look.
    born: Vec<u64>,
    /// Number of times that all traces were forgotten on request.
    cleared: u64,
    /// Whether the table has seen the program from the first event on and has forgotten no block.
    is_whole: bool,
}

/// The last question of the target, with the answer.
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
    /// The request is carried out, or nothing was to be done.
    Done,
    /// Bytes of the program's own trace: now, and at the peak.
    Sums([u64; 2]),
    /// A new text.
    Text(Vec<u8>),
    /// The rest of the last text, from this byte on.
    More(u64),
    /// Memory taken by Heapline in the target.
    OwnMemory,
}

/// Most domains that a program may track by hand. Blocks of further domains are dropped, and
/// counted as [`Contradiction::Full`].
const MAX_TRACKED: usize = 512;

/// State of one ring in the table.
#[derive(Debug)]
pub struct Ring {
    thread: u32,
    /// Whether blocks allocated now are hidden from the program's own trace.
    hides: bool,
    voice: Voice,
    /// Sampling interval in bytes of the recorded blocks; 0 if all blocks are recorded.
    interval: u64,
    definitions: Definitions,
    code: Partial,
    /// Open calls of realloc, by domain. The realloc of an inner layer may be part of the realloc
    /// of an outer layer.
    realloc: [Option<Call>; domain::COUNT],
    /// Open calls that take pages away, the oldest first. A call in a signal handler may come
    /// between the two records of an interrupted call.
    unmaps: Vec<ranges::Call>,
}

impl Ring {
    /// Index of the ring's thread.
    pub fn thread(&self) -> u32 {
        self.thread
    }
}

impl Table {
    /// Returns an empty table.
    ///
    /// - `nframe`: most recent frames kept of each traceback.
    /// - `resolvers`: threads for looking up blocks, besides the calling thread.
    pub fn new(nframe: u32, resolvers: usize) -> Table {
        Table {
            heap: Heap::new(resolvers),
            python: None,
            tracked: BTreeMap::new(),
            said: Said::default(),
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
            born: Vec::new(),
            cleared: 0,
            is_whole: true,
        }
    }

    /// Sets the receiver of copies for forked children. None: forks are ignored.
    pub fn set_forks(&mut self, forks: Option<Forks>) {
        self.forks = forks;
    }

    /// Removes and returns the receiver of copies, for the table of the next program in this
    /// process.
    pub fn take_forks(&mut self) -> Option<Forks> {
        self.forks.take()
    }

    /// Begins a ring of the thread `tid`. `side` says whether the ring is a side ring.
    pub fn ring(&mut self, tid: u32, side: bool) -> Ring {
        let Opened { index: thread, earlier } = self.shared.threads.open(tid, side);
        if let Some(ended) = earlier {
            let (heaps, _) = self.parts();
            heaps.for_each(|heap| heap.fold(thread, ended));
            self.ranges.fold(thread, ended);
        }
        Ring {
            thread,
            hides: false,
            voice: Voice::default(),
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
        self.cleared += 1;
        self.is_whole = false;
    }

    /// Number of times that all traces were forgotten on request.
    pub fn cleared(&self) -> u64 {
        self.cleared
    }

    /// Notes that the program ran before tracing began.
    pub fn begins_late(&mut self) {
        self.is_whole = false;
    }

    /// Number of frees of unknown blocks, without the expected ones.
    ///
    /// Expected are unknown frees of Python's domain while the whole program has been seen: an
    /// interpreter allocates some blocks before the collector can replace the interpreter's
    /// allocators, and frees them later.
    pub fn untracked_frees(&self) -> u64 {
        let is_expected = |domain| self.is_whole && domain == Domain::Python;
        let heaps = self.heaps().filter(|&(domain, _)| !is_expected(domain));
        heaps.map(|(_, heap)| heap.untracked_frees()).sum::<u64>() + self.ranges.untracked_frees()
    }

    /// Sets the peak to the amount that is live now.
    pub fn reset_peak(&mut self) {
        let (heaps, shared) = self.parts();
        heaps.for_each(|heap| heap.reset_peak(shared));
        self.ranges.reset_peak();
    }

    /// Native blocks and sums.
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// Ranges mapped by the program.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// All domains with recorded blocks. The native domain is always present.
    pub fn heaps(&self) -> impl Iterator<Item = (Domain, &Heap)> {
        let python = self.python.as_deref().map(|heap| (Domain::Python, heap));
        let tracked = self.tracked.iter().map(|(&domain, heap)| (domain, heap));
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

    /// Threads, mutable, for setting names.
    pub fn threads_mut(&mut self) -> &mut Threads {
        &mut self.shared.threads
    }

    /// Counts of contradictions in the records.
    pub fn contradictions(&self) -> Contradictions {
        let mut all = self.contradictions.clone();
        self.heaps().for_each(|(_, heap)| all.add(&heap.contradictions()));
        all
    }

    /// Paths of objects with recorded allocators of their own.
    pub fn recorded(&self) -> &BTreeSet<String> {
        &self.recorded
    }

    /// Path of the program, once the collector has reported the path.
    pub fn program(&self) -> Option<&str> {
        self.program.as_deref()
    }

    /// Number of answered questions of the target.
    pub fn queries(&self) -> u64 {
        self.queries
    }

    /// Removes and returns the answer to the target's last question. None if the answer was taken
    /// before.
    pub fn take_answer(&mut self) -> Option<Answered> {
        self.answer.take()
    }

    /// Number of recorded allocator calls.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Returns a recorded block, and the domain of the block's stack.
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

    /// Returns the stack of a sampled block, and the bytes represented by the sample.
    #[cold]
    fn sample(&mut self, stack: u32, interval: u64, size: u64) -> (u32, u64) {
        let sampled = self.sampled(stack, interval, size);
        if sampled.is_none() {
            self.contradictions.count(Contradiction::Full);
        }
        (sampled.unwrap_or(stack), weight::bytes(size, interval))
    }

    /// Returns the stack of samples with this size and interval. None if the tables are full.
    fn sampled(&mut self, stack: u32, interval: u64, size: u64) -> Option<u32> {
        let sampled = self.stacks.sampled(stack, interval, size)?;
        self.shared.weights.set(sampled, size, interval);
        Some(sampled)
    }

    /// Returns `block` with a sampled stack, if the block at this address is a sample now. Interval
    /// and size of the sample stay.
    fn of_same_kind(&mut self, domain: u8, block: Block) -> Result<Block, Corrupt> {
        self.catch_up();
        let (heap, _) = self.heap_of(domain)?;
        let before = heap.block(block.address);
        let sample = before.and_then(|before| self.stacks.sample(before.stack));
        let stack = sample.and_then(|sample| self.sampled(block.stack, sample.interval, sample.size));
        Ok(Block { stack: stack.unwrap_or(block.stack), ..block })
    }

    /// Returns the table's stack for a stack id of a ring, and the domain of the stack's
    /// definition.
    #[inline]
    fn stack(&mut self, ring: &Ring, stack: u32) -> (u32, u8) {
        ring.definitions.get(stack).unwrap_or_else(|| {
            self.contradictions.count(Contradiction::UnknownStack);
            (stacks::EMPTY, domain::NATIVE)
        })
    }

    /// Returns the heap of a domain named by a record, and the state shared by all heaps. Creates
    /// the heap of Python's domain at the first call.
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

    /// All heaps, and the state shared by all heaps.
    fn parts(&mut self) -> (impl Iterator<Item = &mut Heap>, &mut Shared) {
        let heaps = std::iter::once(&mut self.heap).chain(self.python.as_deref_mut()).chain(self.tracked.values_mut());
        (heaps, &mut self.shared)
    }

    /// Applies a TRACK record: the program reports a block of its own allocator. The heaps catch up
    /// at once, because the sums of the program's own trace go over all domains in the order of
    /// events.
    fn track(&mut self, domain: Domain, block: Block) {
        if domain != Domain::Python && !self.tracked.contains_key(&domain) {
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

    /// Returns the domain of an owner. None for a pool that was not named.
    fn domain_of(&self, owner: Tracked) -> Option<Domain> {
        match owner {
            Tracked::Domain(0) => Some(Domain::Python),
            Tracked::Domain(number) => Some(Domain::Track(number)),
            Tracked::Pool(number) => self.said.pool(number).map(Domain::Pool),
        }
    }

    /// Leaves an allocation out, because of a pause.
    fn leave_out(&mut self) {
        self.records += 1;
        self.is_whole = false;
        self.said.leave_out();
    }

    /// Number of allocations that were left out during pauses.
    pub fn left_out(&self) -> u64 {
        self.said.left_out()
    }

    /// What the program says of itself.
    pub fn said(&mut self) -> &mut Said {
        &mut self.said
    }

    fn untrack(&mut self, domain: Domain, address: u64) {
        self.catch_up();
        let Some((heap, shared)) = self.tracked_heap(domain) else { return };
        heap.forget(address, shared);
        heap.catch_up(shared);
    }

    /// Returns the heap of a domain of tracked blocks. None before a block was tracked in the
    /// domain.
    fn tracked_heap(&mut self, domain: Domain) -> Option<(&mut Heap, &mut Shared)> {
        if domain == Domain::Python {
            return self.heap_of(domain::PYTHON).ok();
        }
        Some((self.tracked.get_mut(&domain)?, &mut self.shared))
    }

    /// Heaps covered by the program's own trace, with tracemalloc's domain numbers.
    fn program_heaps(&self) -> impl Iterator<Item = (u32, &Heap)> {
        let number = |domain: &Domain| if let Domain::Track(number) = domain { Some(*number) } else { None };
        let tracked = self.tracked.iter().filter_map(move |(domain, heap)| Some((number(domain)?, heap)));
        self.python.as_deref().map(|heap| (0, heap)).into_iter().chain(tracked)
    }

    /// Carries out a request of the target's `tracemalloc`. None for a request that no collector
    /// makes.
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
            Event::Alloc { .. } if self.said.is_paused(&ring.voice) => {
                self.leave_out();
                Ok(())
            }
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
        // Waiting events may still name the thread, and the thread's row may be given up below.
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
    /// Applies the records outside of the inner loop.
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
            Event::Reallocated { stack, .. } if self.said.is_paused(&ring.voice) => {
                self.leave_out();
                let (_, domain) = self.stack(ring, stack);
                let (heap, shared) = self.heap_of(domain)?;
                heap.realloc_ended(ring.realloc[domain as usize].take(), true, shared);
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
            Event::Reuse { .. } | Event::Track { .. } if self.said.is_paused(&ring.voice) => self.leave_out(),
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
            Event::Track { owner, address, size, stack, .. } => {
                let domain = self.domain_of(owner).ok_or(Corrupt)?;
                // Tracked blocks are never sampled.
                let interval = std::mem::take(&mut ring.interval);
                let (block, _) = self.block(ring, address, size, stack);
                ring.interval = interval;
                self.track(domain, block);
            }
            Event::Untrack { owner, address, .. } => {
                let domain = self.domain_of(owner).ok_or(Corrupt)?;
                self.untrack(domain, address);
            }
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
            Event::Query { asked: query::MARK, .. } => {
                if let Some((receiver, now, text)) = self.said.take_mark(&mut ring.voice) {
                    self.catch_up();
                    receiver.mark(now, &text, self);
                }
            }
            Event::Query { asked, arguments, .. } if self.said.hear(ring, asked, arguments) => {}
            Event::Query { number, asked, arguments, .. } => {
                // An asking thread waits for the answer, so a second question is nonsense.
                if self.answer.is_some() {
                    return Err(Corrupt);
                }
                self.catch_up();
                self.queries += 1;
                self.answer = Some(Answered { number, answer: self.query(asked, arguments).ok_or(Corrupt)? });
            }
            Event::Mapping { mapping, .. } => self.mapping(ring, mapping),
            // The inner loop handles these.
            Event::Pad | Event::Alloc { .. } | Event::Free { .. } => {}
        }
        Ok(())
    }
}

/// Decodes a text field padded with zeros.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests;
