//! A copy of the tables at one instant: what every answer and every snapshot is made from.
//!
//! Copying is all that the table's thread does for a snapshot; sorting, naming and writing happen elsewhere.

use crate::process::image::Image;
use crate::session::arena_map::ArenaMap;
use crate::session::counted::Counted;
use crate::table::Table;
use crate::table::codes::Codes;
use crate::table::contradiction::{Contradiction, Contradictions};
use crate::table::heap::Heap;
use crate::table::live::Block;
use crate::table::modules::Modules;
use crate::table::stacks::{Drawn, Tree};
use crate::table::threads::Thread;
use crate::table::totals::{StackAmounts, Totals};
use heapline_shared_format::arena::Loss;
use heapline_shared_format::event::domain;
use heapline_shared_format::snapshot::{Domain, DomainTotals, weight};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The numbers of a cut.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The program.
    pub image: Image,
    /// When.
    pub taken: SystemTime,
    /// Sums of each domain, the native one first.
    pub domains: Vec<DomainTotals>,
    /// What cannot have happened.
    pub contradictions: Contradictions,
    /// Frees of blocks that are older than the trace.
    pub untracked_frees: u64,
    /// Blocks inside realloc, and calls that may take pages away.
    pub in_realloc: u64,
    /// Calls of allocators that were recorded.
    pub records: u64,
    /// Questions of the target's own tracemalloc that were answered.
    pub queries: u64,
    /// Missing events by cause.
    pub lost: BTreeMap<String, u64>,
    /// How often a thread waited for room in its ring.
    pub waits: u64,
    /// How often a thread's table of stacks was full, and its stacks were defined anew.
    pub stacks_forgotten: u64,
    /// What Heapline uses in the target, in bytes.
    pub target_bytes: u64,
    /// Stacks that the target compared with a fresh walk (`HEAPLINE_VERIFY=1`), and how many differed.
    pub verified: (u64, u64),
    /// Blocks that a forked child began with, by domain.
    pub inherited: Option<BTreeMap<String, u64>>,
    /// Children of the process that could not report themselves.
    pub untold: u64,
    /// Mean distance of samples now, in bytes; 0 when everything is recorded.
    pub sample_interval: u64,
    /// What the collector could not see, or not whole.
    pub unseen: Unseen,
    /// Objects whose own allocators' blocks are recorded.
    pub recorded: BTreeSet<String>,
}

/// The target's counts of what its collector could not see, or not whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen {
    /// Places that call an allocator which the collector cannot stand in front of.
    pub foreign_places: u64,
    /// Objects whose constructors ran before their calls were led to the collector.
    pub unseen_starts: u64,
}

impl Unseen {
    fn read(map: &ArenaMap) -> Unseen {
        let target = &map.arena().header().target;
        Unseen {
            foreign_places: target.foreign_places.load(Ordering::Relaxed).into(),
            unseen_starts: target.unseen_starts.load(Ordering::Relaxed).into(),
        }
    }
}

/// What a forked child began with.
#[derive(Clone, Debug)]
pub struct Inherited {
    blocks: BTreeMap<String, u64>,
    doubt: Arc<AtomicU64>,
}

impl Inherited {
    /// All of a table; `doubt` counts events that may be missing in it.
    pub fn of(table: &Table, doubt: Arc<AtomicU64>) -> Inherited {
        let count = |(domain, heap): (Domain, &Heap)| (domain.to_string(), heap.totals().current().count);
        Inherited { blocks: table.heaps().map(count).collect(), doubt }
    }
}

/// The name of what a child may lack: events of its parent's other threads during the fork.
const LOST_IN_FORK: &str = "fork";

/// A whole cut.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The numbers.
    pub figures: Figures,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Tracebacks.
    pub tree: Tree,
    /// Who has drawn the samples.
    pub drawn: Drawn,
    /// Objects that are or were loaded.
    pub modules: Modules,
    /// Threads by index.
    pub threads: Vec<Thread>,
    /// Python code objects.
    pub codes: Codes,
    /// Blocks of each domain, the native one first.
    pub layers: Vec<Layer>,
}

/// One domain's blocks.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Which.
    pub domain: Domain,
    /// Live blocks.
    pub live: Vec<Block>,
    /// Sums per stack.
    pub stacks: Vec<(u32, StackAmounts)>,
}

/// The target's counters in the arena, which go on over sessions and programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    lost: [u64; Loss::ALL.len()],
    waits: u64,
    stacks_forgotten: u64,
    /// Threads that were there when the session began.
    threads: u64,
}

impl Counters {
    /// The session begins in the midst of so many threads. Each of them may be inside of an allocation that nobody will hear
    /// of, and whose block, where another was just freed, seems to be freed twice.
    pub fn amid(self, threads: usize) -> Counters {
        Counters { threads: threads as u64, ..self }
    }

    /// The counters now.
    pub fn read(map: &ArenaMap) -> Counters {
        let header = map.arena().header();
        Counters {
            lost: Loss::ALL.map(|cause| header.lost.0[cause as usize].load(Ordering::Relaxed)),
            waits: header.progress.waits.load(Ordering::Relaxed),
            stacks_forgotten: u64::from(header.target.stacks_forgotten.load(Ordering::Relaxed)),
            threads: 0,
        }
    }

    /// What has been lost since `before`, by name.
    fn lost_since(&self, before: &Counters) -> BTreeMap<String, u64> {
        let causes = Loss::ALL.iter().zip(self.lost.iter().zip(before.lost));
        let counts = causes.map(|(cause, (now, before))| (cause.name().to_owned(), now.saturating_sub(before)));
        counts.filter(|&(_, n)| n > 0).collect()
    }
}

impl Figures {
    /// The numbers of a table. `before` are the counters when the table was empty.
    pub fn of(
        table: &Table,
        image: &Image,
        map: &ArenaMap,
        before: &Counters,
        inherited: Option<&Inherited>,
    ) -> Figures {
        let now = Counters::read(map);
        let target = &map.arena().header().target;
        let mut image = image.clone();
        // A program that exec began and that ended at once: nobody could ask the kernel about it.
        if let Some(program) = table.program().filter(|_| image.executable.is_empty()) {
            image.executable = program.to_owned();
        }
        let mut lost = now.lost_since(before);
        let doubt = inherited.map_or(0, |inherited| inherited.doubt.load(Ordering::Relaxed));
        if doubt > 0 {
            lost.insert(LOST_IN_FORK.to_owned(), doubt);
        }
        let mut contradictions = table.contradictions();
        let in_progress = contradictions.excuse(Contradiction::DoubleFree, before.threads);
        Figures {
            image,
            taken: SystemTime::now(),
            domains: sums(table).collect(),
            contradictions,
            untracked_frees: in_progress + table.untracked_frees(),
            in_realloc: table.heaps().map(|(_, heap)| heap.in_realloc()).sum::<u64>() + table.ranges().open_calls(),
            records: table.records(),
            queries: table.queries(),
            lost,
            waits: now.waits.saturating_sub(before.waits),
            stacks_forgotten: now.stacks_forgotten.saturating_sub(before.stacks_forgotten),
            target_bytes: map.touched_bytes() + target.own_bytes.load(Ordering::Relaxed),
            verified: (target.verified.load(Ordering::Relaxed), target.verify_failed.load(Ordering::Relaxed)),
            inherited: inherited.map(|inherited| inherited.blocks.clone()),
            sample_interval: 0,
            untold: map.arena().header().tree.untold.load(Ordering::Relaxed).into(),
            unseen: Unseen::read(map),
            recorded: table.recorded().clone(),
        }
    }

    /// Samples were recorded: calls are what threads have counted, and numbers of live blocks are estimates, as their bytes are.
    pub fn estimate(&mut self, table: &Table, interval: u64, counted: &Counted) {
        self.sample_interval = interval;
        let stacks = table.stacks();
        for (domain, heap) in table.heaps() {
            let Some(calls) = counted.0.get(match domain {
                Domain::Native => usize::from(domain::NATIVE),
                Domain::Python => usize::from(domain::PYTHON),
                _ => continue,
            }) else {
                continue;
            };
            let blocks = heap.totals().stacks().map(|(stack, amounts)| {
                let weight = stacks.sample(stack).map_or(1.0, |sample| weight::blocks(sample.size, sample.interval));
                amounts.current.count as f64 * weight
            });
            let blocks = blocks.sum::<f64>().round();
            for row in self.domains.iter_mut().filter(|row| row.domain == domain) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "saturates; is not negative"
                )]
                let blocks = blocks as u64;
                *row = DomainTotals {
                    blocks,
                    allocs: calls.allocs,
                    frees: calls.frees,
                    allocated_bytes: calls.bytes,
                    ..*row
                };
            }
        }
    }

    /// Whether samples were recorded and threads have counted calls: that none of them was a sample
    /// does not mean that there were none.
    pub fn counts_calls(&self) -> bool {
        self.sample_interval != 0 && self.domains.iter().any(|row| row.domain.is_sampled() && row.allocs > 0)
    }

    /// Sums of the native domain.
    pub fn native(&self) -> &DomainTotals {
        &self.domains[0]
    }

    /// Sums of the domain that a report shows when none is asked for: Python's in a CPython process.
    pub fn shown(&self) -> &DomainTotals {
        let python = self.domains.iter().find(|totals| totals.domain == Domain::Python && totals.allocs > 0);
        python.unwrap_or(self.native())
    }
}

/// The sums of each domain, reserved ranges last.
fn sums(table: &Table) -> impl Iterator<Item = DomainTotals> {
    let ranges = table.ranges().layers().map(|(domain, layer)| totals(domain, layer.totals()));
    table.heaps().map(|(domain, heap)| totals(domain, heap.totals())).chain(ranges)
}

fn totals(domain: Domain, totals: &Totals) -> DomainTotals {
    let (current, total) = (totals.current(), totals.total());
    DomainTotals {
        domain,
        current: current.size,
        peak: totals.peak(),
        blocks: current.count,
        allocs: total.count,
        frees: totals.frees(),
        allocated_bytes: total.size,
    }
}

impl Layer {
    fn of(domain: Domain, heap: &Heap) -> Layer {
        Layer { domain, live: heap.live(), stacks: heap.totals().stacks().collect() }
    }

    /// Every domain's, reserved ranges last.
    fn all(table: &Table) -> Vec<Layer> {
        let ranges = table.ranges();
        let mapped = ranges.layers().map(|(domain, layer)| {
            let mut stacks: Vec<_> = layer.stacks().collect();
            stacks.sort_unstable_by_key(|&(stack, _)| stack);
            Layer { domain, live: ranges.live(domain), stacks }
        });
        table.heaps().map(|(domain, heap)| Layer::of(domain, heap)).chain(mapped).collect()
    }
}

impl Cut {
    /// The native domain's blocks.
    pub fn native(&self) -> &Layer {
        &self.layers[0]
    }

    /// A copy of everything.
    pub fn of(table: &Table, figures: Figures, nframe: u32) -> Cut {
        Cut {
            figures,
            nframe,
            tree: table.stacks().tree().clone(),
            drawn: table.stacks().drawn().clone(),
            modules: table.modules().clone(),
            threads: table.threads().rows().to_vec(),
            codes: table.codes().clone(),
            layers: Layer::all(table),
        }
    }

    /// A cut of a program of the same process that was not traced.
    pub fn empty_for(&self, image: Image) -> Cut {
        let nothing = Heap::new(0);
        let figures = Figures {
            image,
            domains: vec![totals(Domain::Native, nothing.totals())],
            contradictions: Contradictions::default(),
            untracked_frees: 0,
            in_realloc: 0,
            records: 0,
            queries: 0,
            lost: BTreeMap::new(),
            waits: 0,
            stacks_forgotten: 0,
            inherited: None,
            ..self.figures.clone()
        };
        Cut {
            figures,
            nframe: self.nframe,
            tree: Tree::default(),
            drawn: Drawn::default(),
            modules: Modules::default(),
            threads: Vec::new(),
            codes: Codes::default(),
            layers: vec![Layer::of(Domain::Native, &nothing)],
        }
    }
}
