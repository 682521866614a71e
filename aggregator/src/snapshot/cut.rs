//! A cut: a copy of the tables at one instant. Every snapshot is made from a cut.
//!
//! The table's thread only copies, in steps, while it goes on with the events (`table/copy.rs`).
//! Counting, sorting, naming and writing happen on other threads.

use crate::process::image::Image;
use crate::session::arena_map::ArenaMap;
use crate::session::counted::Counted;
use crate::snapshot::groups::Groups;
use crate::table::Table;
use crate::table::codes::Described;
use crate::table::contradiction::{Contradiction, Contradictions};
use crate::table::copy::HeapCopy;
use crate::table::heap::Heap;
use crate::table::modules::Modules;
use crate::table::ranges;
use crate::table::stacks::{Drawn, Tree};
use crate::table::threads::{EndedThreads, Thread};
use crate::table::totals::{Amounts, Totals};
use heapline_shared_format::arena::Loss;
use heapline_shared_format::event::domain;
use heapline_shared_format::snapshot::{Begun, Domain, DomainTotals, History, weight};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The numbers of a cut.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The program.
    pub image: Image,
    /// Begin of the trace.
    pub begun: Begun,
    /// Time of the cut.
    pub taken: SystemTime,
    /// Sums of each domain, the native domain first.
    pub domains: Vec<DomainTotals>,
    /// Counts of impossible sequences of events.
    pub contradictions: Contradictions,
    /// Frees of blocks older than the trace.
    pub untracked_frees: u64,
    /// Number of blocks inside realloc, plus calls in progress that may unmap pages.
    pub in_realloc: u64,
    /// Recorded calls of allocators.
    pub records: u64,
    /// Answered questions of the target's own tracemalloc.
    pub queries: u64,
    /// Missing events by cause.
    pub lost: BTreeMap<String, u64>,
    /// Number of times a thread waited for room in its ring.
    pub waits: u64,
    /// Number of times a thread's table of stacks was full. The stacks of the thread were defined
    /// anew each time.
    pub stacks_forgotten: u64,
    /// Memory used by Heapline in the target, in bytes.
    pub target_bytes: u64,
    /// Stacks compared by the target with a fresh walk (`HEAPLINE_VERIFY=1`), and the number of
    /// differences.
    pub verified: (u64, u64),
    /// Live blocks at the start of a forked child, by domain.
    pub inherited: Option<BTreeMap<String, u64>>,
    /// Children of the process without a report of their own.
    pub untold: u64,
    /// Current mean distance of samples, in bytes; 0 when everything is recorded.
    pub sample_interval: u64,
    /// Counts of allocations without a record, or with a partial record.
    pub unseen: Unseen,
    /// Objects with recorded blocks of their own allocators.
    pub recorded: BTreeSet<String>,
    /// Number of times that all traces were forgotten on request.
    pub cleared: u64,
    /// Number of allocations that were left out during pauses.
    pub left_out: u64,
}

/// The target's counts of allocations that its collector could not see, or not fully see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen {
    /// Places that call an allocator without a hook.
    pub foreign_places: u64,
    /// Objects with constructors run before the calls were led to the collector.
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

/// Live blocks at the start of a forked child.
#[derive(Clone, Debug)]
pub struct Inherited {
    blocks: BTreeMap<String, u64>,
    doubt: Arc<AtomicU64>,
}

impl Inherited {
    /// Counts all blocks of a table. `doubt` counts the events possibly missing in the table.
    pub fn of(table: &Table, doubt: Arc<AtomicU64>) -> Inherited {
        let count = |(domain, heap): (Domain, &Heap)| (domain.to_string(), heap.totals().current().count);
        Inherited { blocks: table.heaps().map(count).collect(), doubt }
    }
}

/// Name of the loss of a forked child: events of the parent's other threads during the fork.
const LOST_IN_FORK: &str = "fork";

/// A complete cut.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The numbers.
    pub figures: Figures,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Tracebacks.
    pub tree: Tree,
    /// The processes that have drawn the samples.
    pub drawn: Drawn,
    /// Objects loaded now or earlier.
    pub modules: Modules,
    /// Threads by index.
    pub threads: Vec<Thread>,
    /// Ended threads whose rows were given to other threads. The first has the number behind the
    /// last index of `threads`.
    pub ended: Vec<EndedThreads>,
    /// Python code objects.
    pub codes: Described,
    /// Blocks of each domain, the native domain first.
    pub layers: Vec<Layer>,
    /// Memory over time up to the instant of the cut; none without a history.
    pub history: Option<History>,
}

/// A cut with blocks that are still being copied.
pub struct OpenCut {
    /// The cut, with the layers that are complete.
    cut: Cut,
    copies: Vec<(Domain, HeapCopy)>,
}

/// The blocks of a single domain.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The domain.
    pub domain: Domain,
    /// Live blocks.
    pub live: Groups,
    /// Sums per stack.
    pub stacks: Vec<(u32, Amounts)>,
    /// Sums per thread, by rising number.
    pub threads: Vec<(u32, Amounts)>,
}

/// The target's counters in the arena. The counters go on over sessions and programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    lost: [u64; Loss::ALL.len()],
    waits: u64,
    stacks_forgotten: u64,
    /// Number of threads at the start of the session.
    threads: u64,
}

impl Counters {
    /// Notes the number of threads at the start of the session.
    ///
    /// Each thread may be inside an allocation whose event was never recorded. If the new block
    /// takes the place of a recorded freed block, its later free looks like a double free.
    pub fn amid(self, threads: usize) -> Counters {
        Counters { threads: threads as u64, ..self }
    }

    /// Reads the current counters.
    pub fn read(map: &ArenaMap) -> Counters {
        let header = map.arena().header();
        Counters {
            lost: Loss::ALL.map(|cause| header.lost.0[cause as usize].load(Ordering::Relaxed)),
            waits: header.progress.waits.load(Ordering::Relaxed),
            stacks_forgotten: u64::from(header.target.stacks_forgotten.load(Ordering::Relaxed)),
            threads: 0,
        }
    }

    /// Returns the losses since `before`, by name.
    fn lost_since(&self, before: &Counters) -> BTreeMap<String, u64> {
        let causes = Loss::ALL.iter().zip(self.lost.iter().zip(before.lost));
        let counts = causes.map(|(cause, (now, before))| (cause.name().to_owned(), now.saturating_sub(before)));
        counts.filter(|&(_, n)| n > 0).collect()
    }
}

#[cfg(test)]
impl Figures {
    /// Returns the numbers of a trace without events.
    pub fn nothing() -> Figures {
        Figures {
            image: Image::default(),
            begun: Begun::Start,
            taken: SystemTime::UNIX_EPOCH,
            domains: Vec::new(),
            contradictions: Contradictions::default(),
            untracked_frees: 0,
            in_realloc: 0,
            records: 0,
            queries: 0,
            lost: BTreeMap::new(),
            waits: 0,
            stacks_forgotten: 0,
            target_bytes: 0,
            verified: (0, 0),
            inherited: None,
            untold: 0,
            sample_interval: 0,
            unseen: Unseen::default(),
            recorded: BTreeSet::new(),
            cleared: 0,
            left_out: 0,
        }
    }
}

impl Figures {
    /// Computes the numbers of a table. `before` are the counters when the table was empty.
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
        // A program that ended at once: the kernel could not be asked about the program.
        if let Some(program) = table.program().filter(|_| !image.is_read) {
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
            begun: Begun::Start,
            taken: SystemTime::now(),
            domains: sums(table),
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
            cleared: table.cleared(),
            left_out: table.left_out(),
        }
    }

    /// Adjusts the numbers of a sampled trace:
    /// - The calls become the counts of the threads.
    /// - The number of live blocks becomes an estimate. The bytes of live blocks already are an
    ///   estimate.
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

    /// Whether samples were recorded and threads have counted calls. Without any sample, there may
    /// still have been calls.
    pub fn counts_calls(&self) -> bool {
        self.sample_interval != 0 && self.domains.iter().any(|row| row.domain.is_sampled() && row.allocs > 0)
    }

    /// Returns the sums of the native domain.
    pub fn native(&self) -> &DomainTotals {
        &self.domains[0]
    }

    /// Returns the sums of the default domain of a report: Python's in a CPython process, otherwise
    /// the native domain.
    pub fn shown(&self) -> &DomainTotals {
        let python = self.domains.iter().find(|totals| totals.domain == Domain::Python && totals.allocs > 0);
        python.unwrap_or(self.native())
    }
}

/// Returns the sums of each domain, reserved ranges and then pools last.
fn sums(table: &Table) -> Vec<DomainTotals> {
    let ranges = table.ranges().layers().map(|(domain, layer)| totals(domain, layer.totals()));
    let mut sums: Vec<_> = table.heaps().map(|(domain, heap)| totals(domain, heap.totals())).chain(ranges).collect();
    sums.sort_by_key(|row| row.domain.is_pool());
    sums
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
    fn of(domain: Domain, live: Groups, totals: &Totals, threads: usize) -> Layer {
        Layer { domain, live, stacks: totals.stacks().collect(), threads: by_thread(totals, threads) }
    }

    /// Copies the ranges: memory, then reservations.
    fn ranges(table: &Table) -> Vec<Layer> {
        let (ranges, threads) = (table.ranges(), table.threads().rows().len());
        let layer = |(domain, layer): (Domain, &ranges::Layer)| {
            let mut stacks: Vec<_> = layer.stacks().collect();
            stacks.sort_unstable_by_key(|&(stack, _)| stack);
            let mut live = Groups::default();
            ranges.live(domain).iter().for_each(|block| live.add(block, 1));
            Layer { domain, live, stacks, threads: by_thread(layer.totals(), threads) }
        };
        ranges.layers().map(layer).collect()
    }
}

impl OpenCut {
    /// Begins a copy of everything.
    pub fn of(table: &mut Table, figures: Figures, history: Option<History>, nframe: u32) -> OpenCut {
        let cut = Cut {
            figures,
            nframe,
            tree: table.stacks().tree().clone(),
            drawn: table.stacks().drawn().clone(),
            modules: table.modules().clone(),
            threads: table.threads().rows().to_vec(),
            ended: table.threads().ended().to_vec(),
            codes: table.codes().described().clone(),
            layers: Layer::ranges(table),
            history,
        };
        OpenCut { cut, copies: table.copy() }
    }

    /// Threads by index, for what the threads have counted.
    pub fn threads_mut(&mut self) -> &mut [Thread] {
        &mut self.cut.threads
    }

    /// Waits for the copies of the blocks. None if the table is gone before the end.
    pub fn wait(self) -> Option<Cut> {
        let OpenCut { mut cut, copies } = self;
        let mut layers = Vec::with_capacity(copies.len() + cut.layers.len());
        for (domain, copy) in copies {
            let mut live = if domain.is_sampled() { cut.shared_samples() } else { Groups::default() };
            let totals = copy.collect(|block, count| live.add(&block, count))?;
            layers.push(Layer::of(domain, live, &totals, cut.threads.len()));
        }
        layers.append(&mut cut.layers);
        layers.sort_by_key(|layer| layer.domain.is_pool());
        cut.layers = layers;
        Some(cut)
    }
}

/// Returns the sums per thread, with the numbers of [`Cut::threads`] and [`Cut::ended`].
fn by_thread(totals: &Totals, threads: usize) -> Vec<(u32, Amounts)> {
    let first_ended = u32::try_from(threads).unwrap_or(u32::MAX);
    let ended = totals.ended().map(|(row, amounts)| (first_ended.saturating_add(row), amounts));
    totals.threads().chain(ended).collect()
}

impl Cut {
    /// Returns the blocks of the native domain.
    pub fn native(&self) -> &Layer {
        &self.layers[0]
    }

    /// Whether other processes may have the same samples.
    pub fn is_of_family(&self) -> bool {
        !self.drawn.ancestors.is_empty() || self.drawn.shared_end > 0
    }

    /// Returns groups without blocks, for a domain whose samples other processes may have too.
    fn shared_samples(&self) -> Groups {
        if self.is_of_family() {
            Groups::with_addresses(self.tree.clone(), self.drawn.shared_end)
        } else {
            Groups::default()
        }
    }

    /// Returns an empty cut, for an untraced program of the same process.
    pub fn empty_for(&self, image: Image) -> Cut {
        let nothing = Totals::default();
        let figures = Figures {
            image,
            begun: Begun::Start,
            domains: vec![totals(Domain::Native, &nothing)],
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
            ended: Vec::new(),
            codes: Described::default(),
            layers: vec![Layer::of(Domain::Native, Groups::default(), &nothing, 0)],
            history: None,
        }
    }
}
