//! What the records add up to: the live blocks with their threads and tracebacks, and the sums.
//!
//! [`Table`] applies the records in the order that [`crate::order`] gives them, and answers at any point between two
//! of them. It reads no clock and no file.

pub mod blocks;
pub mod codes;
pub mod heap;
pub mod live;
pub mod modules;
mod resolvers;
pub mod stacks;
pub mod threads;
pub mod totals;

use crate::contradiction::{Contradiction, Contradictions};
use crate::order::{Corrupt, Sink};
use blocks::Call;
use codes::{Codes, Partial};
use heap::Heap;
use heapline_shared_format::event::{Event, domain};
use heapline_shared_format::snapshot::Domain;
use live::Block;
use modules::{Loaded, Modules, Object};
use stacks::{Definition, Definitions, Stacks};
use threads::Threads;

/// See the module.
pub struct Table {
    /// The native one.
    heap: Heap,
    /// From its first event on.
    python: Option<Box<Heap>>,
    resolvers: usize,
    stacks: Stacks,
    codes: Codes,
    modules: Modules,
    threads: Threads,
    contradictions: Contradictions,
    records: u64,
    /// Path of the program, as it told itself.
    program: Option<String>,
}

/// What the table remembers of a ring.
#[derive(Debug)]
pub struct Ring {
    thread: u32,
    definitions: Definitions,
    code: Partial,
    /// By domain: an inner layer's realloc may be part of an outer one's.
    realloc: [Option<Call>; domain::COUNT],
}

impl Table {
    /// An empty table that keeps the most recent `nframe` frames of each traceback, with so many threads to look blocks
    /// up besides the calling one.
    pub fn new(nframe: u32, resolvers: usize) -> Table {
        Table {
            heap: Heap::new(resolvers),
            python: None,
            resolvers,
            stacks: Stacks::new(nframe),
            codes: Codes::default(),
            modules: Modules::default(),
            threads: Threads::default(),
            contradictions: Contradictions::default(),
            records: 0,
            program: None,
        }
    }

    /// A thread begins a ring.
    pub fn ring(&mut self, tid: u32, side: bool) -> Ring {
        Ring {
            thread: self.threads.open(tid, side),
            definitions: Definitions::default(),
            code: Partial::default(),
            realloc: [None; domain::COUNT],
        }
    }

    /// Forgets all traces; tracing goes on.
    pub fn clear_traces(&mut self) {
        self.catch_up();
        for heap in every(&mut self.heap, &mut self.python) {
            heap.clear(&mut self.threads);
        }
    }

    /// The peak becomes what is live now.
    pub fn reset_peak(&mut self) {
        for heap in every(&mut self.heap, &mut self.python) {
            heap.reset_peak(&mut self.threads);
        }
    }

    /// Native blocks and sums.
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// All layers that were recorded; the native one always is.
    pub fn heaps(&self) -> impl Iterator<Item = (Domain, &Heap)> {
        let python = self.python.as_deref().map(|heap| (Domain::Python, heap));
        std::iter::once((Domain::Native, &self.heap)).chain(python)
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
        &self.threads
    }

    /// Threads, to name them.
    pub fn threads_mut(&mut self) -> &mut Threads {
        &mut self.threads
    }

    /// What cannot have happened.
    pub fn contradictions(&self) -> Contradictions {
        let mut all = self.contradictions.clone();
        self.heaps().for_each(|(_, heap)| all.add(&heap.contradictions()));
        all
    }

    /// Path of the program, once it has told it.
    pub fn program(&self) -> Option<&str> {
        self.program.as_deref()
    }

    /// Calls that were recorded.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The block, and the domain that its stack was defined for.
    #[inline]
    fn block(&mut self, ring: &Ring, address: u64, size: u64, stack: u32) -> (Block, u8) {
        let (stack, domain) = ring.definitions.get(stack).unwrap_or_else(|| {
            self.contradictions.count(Contradiction::UnknownStack);
            (stacks::EMPTY, domain::NATIVE)
        });
        (Block { address, size, stack, thread: ring.thread }, domain)
    }

    /// The heap of a domain that a record names, and what moves with it.
    fn heap_of(&mut self, domain: u8) -> Result<(&mut Heap, &mut Threads), Corrupt> {
        let resolvers = self.resolvers;
        let heap = match domain {
            domain::NATIVE => &mut self.heap,
            domain::PYTHON => &mut **self.python.get_or_insert_with(|| Box::new(Heap::new(resolvers))),
            _ => return Err(Corrupt),
        };
        Ok((heap, &mut self.threads))
    }

    #[inline(never)]
    fn alloc_other(&mut self, block: Block, domain: u8) -> Result<(), Corrupt> {
        let (heap, threads) = self.heap_of(domain)?;
        heap.alloc(block, threads);
        Ok(())
    }

    #[inline(never)]
    fn free_other(&mut self, address: u64, domain: u8) -> Result<(), Corrupt> {
        let (heap, threads) = self.heap_of(domain)?;
        heap.free(address, threads);
        Ok(())
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
                self.heap.alloc(block, &mut self.threads);
                Ok(())
            }
            Event::Free { address, domain, .. } => {
                self.records += 1;
                if domain != domain::NATIVE {
                    return self.free_other(address, domain);
                }
                self.heap.free(address, &mut self.threads);
                Ok(())
            }
            _ => self.apply_rare(ring, event),
        }
    }

    fn close(&mut self, ring: Ring) {
        // The thread's row may be given up: what waits may still name it.
        self.catch_up();
        self.threads.close(ring.thread);
    }

    fn catch_up(&mut self) {
        for heap in every(&mut self.heap, &mut self.python) {
            heap.catch_up(&mut self.threads);
        }
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
                let (heap, threads) = self.heap_of(domain)?;
                ring.realloc[domain as usize] = Some(heap.realloc(address, before, threads));
            }
            Event::Reallocated { address, size, stack, .. } => {
                let (block, domain) = self.block(ring, address, size, stack);
                self.records += 1;
                let (heap, threads) = self.heap_of(domain)?;
                heap.reallocated(ring.realloc[domain as usize].take(), block, threads);
            }
            Event::ReallocEnd { freed, domain, .. } => {
                self.records += 1;
                let (heap, threads) = self.heap_of(domain)?;
                heap.realloc_ended(ring.realloc[domain as usize].take(), freed, threads);
            }
            Event::Code { id, more, text } => {
                if !self.codes.describe(&mut ring.code, id, more, text.bytes())? {
                    self.contradictions.count(Contradiction::Full);
                }
            }
            Event::Stack { id, keep, total, truncated, more, domain, frames } => {
                return self.define(ring, Definition { id, keep, total, truncated, more, domain, frames });
            }
            Event::Module { start, end, bias, is_program, build_id, path, .. } => {
                let (path, build_id): (Vec<u8>, _) = (path.bytes().collect(), build_id.bytes().collect());
                if is_program && !path.is_empty() {
                    self.program = Some(String::from_utf8_lossy(&path).into_owned());
                }
                self.load(Object { path, build_id, start, end, bias });
            }
            Event::Unload { start, .. } => {
                if let Some(module) = self.modules.unload(start) {
                    self.seal(module);
                }
            }
            Event::Thread { name, .. } => self.threads.name(ring.thread, text(&name)),
            // The others are the inner loop's.
            Event::Pad | Event::Alloc { .. } | Event::Free { .. } => {}
        }
        Ok(())
    }
}

/// Both heaps of a table, of which the second may not be there.
fn every<'h>(native: &'h mut Heap, python: &'h mut Option<Box<Heap>>) -> impl Iterator<Item = &'h mut Heap> {
    std::iter::once(native).chain(python.as_deref_mut())
}

/// The text of a field that is padded with zeros.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests;
