//! Estimates for a tree of forked processes, compared with the truth over many seeds. The test uses
//! the collector's sampler, the aggregator's tables with their copies at forks, and the sums of
//! `report` over the snapshots.

use heapline_aggregator::process::image::Image;
use heapline_aggregator::snapshot::build::{About, build};
use heapline_aggregator::snapshot::cut::{Figures, OpenCut};
use heapline_aggregator::table::contradiction::Contradictions;
use heapline_aggregator::table::order::Sink;
use heapline_aggregator::table::{Ring, Table};
use heapline_collector::sampling::sampler::Sampler;
use heapline_shared_format::event::Event;
use heapline_shared_format::query;
use heapline_shared_format::snapshot::{Begun, Birth, Domain, DomainTotals, End, Snapshot};
use heapline_tools::input::moment::{At, totals};
use heapline_tools::input::tree::Subject;
use heapline_tools::query::estimate::of_domain;
use std::collections::BTreeMap;
use std::time::SystemTime;

const SEEDS: u64 = 300;
const INTERVAL: u64 = 64 << 10;

/// A block of a simulated process.
#[derive(Clone, Copy)]
struct Block {
    address: u64,
    size: u64,
    is_sample: bool,
}

/// A process whose allocations are sampled as in the collector.
struct Process {
    pid: u32,
    parent: Option<u32>,
    table: Table,
    ring: Ring,
    sampler: Sampler,
    live: Vec<Block>,
    size: u64,
    peak: u64,
    next_address: u64,
    allocs: u64,
    allocated_bytes: u64,
}

/// The processes of a run.
struct Tree {
    processes: Vec<Process>,
    seed: u64,
    random: u64,
}

impl Process {
    fn new(table: Table, seed: u64, (pid, parent): (u32, Option<u32>)) -> Process {
        let mut table = table;
        let ring = table.ring(pid, false);
        let mut process = Process {
            pid,
            parent,
            table,
            ring,
            sampler: Sampler::begin(seed, INTERVAL),
            live: Vec::new(),
            size: 0,
            peak: 0,
            next_address: 0x10_0000,
            allocs: 0,
            allocated_bytes: 0,
        };
        process.apply(Event::Query { stamp: 0, number: 0, asked: query::INTERVAL, arguments: [INTERVAL, 0] });
        let (keep, total, frames) = (0, 2, &[0x1000, 0x2000][..]);
        process.apply(Event::Stack { id: 0, keep, total, truncated: false, more: false, domain: 0, frames });
        process
    }

    fn apply(&mut self, event: Event<'_>) {
        self.table.apply(&mut self.ring, event).expect("no corruption here");
    }

    fn alloc_at(&mut self, address: u64, size: u64) {
        let is_sample = self.sampler.passes(usize::try_from(size).expect("64 bits"));
        if is_sample {
            self.sampler.draw(INTERVAL);
            self.apply(Event::Alloc { stamp: 0, address, size, stack: 0 });
        }
        self.allocs += 1;
        self.allocated_bytes += size;
        self.live.push(Block { address, size, is_sample });
        self.size += size;
        self.peak = self.peak.max(self.size);
    }

    fn alloc(&mut self, size: u64) {
        let address = self.next_address;
        self.next_address += size.next_multiple_of(16) + 16;
        self.alloc_at(address, size);
    }

    fn free(&mut self, index: usize) {
        let block = self.live.swap_remove(index);
        self.size -= block.size;
        if block.is_sample {
            self.apply(Event::Free { stamp: 0, address: block.address, domain: 0 });
        }
    }

    fn fork(&mut self, pid: u32, seed: u64) -> Process {
        self.table.catch_up();
        let inherited = self.table.inherited();
        self.table.end_copies();
        let child = Process::new(inherited.grow().expect("complete"), seed, (pid, Some(self.pid)));
        let (live, size) = (self.live.clone(), self.size);
        Process { live, size, peak: size, next_address: self.next_address, ..child }
    }

    fn snapshot(mut self) -> Snapshot {
        self.table.catch_up();
        let sums = self.table.heap().totals();
        let native = DomainTotals {
            domain: Domain::Native,
            current: sums.current().size,
            peak: sums.peak(),
            blocks: sums.current().count,
            allocs: self.allocs,
            frees: sums.frees(),
            allocated_bytes: self.allocated_bytes,
        };
        let figures = Figures {
            image: Image::default(),
            begun: Begun::Start,
            taken: SystemTime::UNIX_EPOCH,
            domains: vec![native],
            contradictions: Contradictions::default(),
            untracked_frees: 0,
            in_realloc: 0,
            records: 1,
            queries: 0,
            lost: BTreeMap::new(),
            waits: 0,
            stacks_forgotten: 0,
            target_bytes: 0,
            verified: (0, 0),
            inherited: self.parent.map(|_| BTreeMap::new()),
            untold: 0,
            unseen: Default::default(),
            recorded: Default::default(),
            cleared: 0,
            left_out: 0,
            sample_interval: INTERVAL,
        };
        let origin = self.parent.map(|parent| (parent, Birth::Fork));
        let about = About { pid: self.pid, end: End::Exited, exit_status: Some(0), notes: Vec::new(), origin };
        let cut = OpenCut::of(&mut self.table, figures, None, 64);
        self.table.end_copies();
        build(cut.wait().expect("complete"), about)
    }
}

impl Tree {
    fn begin(seed: u64) -> Tree {
        let first = Process::new(Table::new(64, 0), seed, (1, None));
        Tree { processes: vec![first], seed, random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// Returns a random number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % end
    }

    /// Forks a process. Returns the child's index.
    fn fork(&mut self, of: usize) -> usize {
        let pid = u32::try_from(self.processes.len()).expect("few") + 1;
        let seed = self.seed.wrapping_mul(1000).wrapping_add(u64::from(pid));
        let child = self.processes[of].fork(pid, seed);
        self.processes.push(child);
        self.processes.len() - 1
    }

    /// Forks `children` idle children from the first process.
    fn fork_often(&mut self, children: u32) {
        for _ in 0..children {
            self.fork(0);
        }
    }

    fn alloc(&mut self, process: usize, bytes: u64, size: u64) {
        (0..bytes / size).for_each(|_| self.processes[process].alloc(size));
    }

    /// Frees a part of a process's blocks, each with the same probability.
    fn free(&mut self, process: usize, percent: u64) {
        for index in (0..self.processes[process].live.len()).rev() {
            if self.below(100) < percent {
                self.processes[process].free(index);
            }
        }
    }

    /// Compares the estimates with the truth. Returns:
    ///
    /// 1. whether the interval of live bytes contains the true live bytes
    /// 2. whether the interval of peaks contains the true sum of the processes' peaks
    /// 3. the estimate of live bytes
    /// 4. the true live bytes
    fn judged(self) -> (bool, bool, f64, f64) {
        let truth: u64 = self.processes.iter().map(|process| process.size).sum();
        let peaks: u64 = self.processes.iter().map(|process| process.peak).sum();
        let snapshots: Vec<Snapshot> = self.processes.into_iter().map(Process::snapshot).collect();
        let subject = Subject::tree(snapshots);
        let row = totals(subject.head(), Domain::Native);
        let holds = |at, size, truth: u64| {
            let interval = of_domain(subject.summed(), Domain::Native, at).size_interval(size);
            interval.map_or(size == truth, |(from, to)| (from..=to).contains(&truth))
        };
        let live = holds(At::Live, row.current, truth);
        (live, holds(At::Peak, row.peak, peaks), row.current as f64, truth as f64)
    }
}

/// Actions of the processes of a tree.
struct Story {
    name: &'static str,
    tell: fn(&mut Tree),
}

const MANY: u64 = 60 * INTERVAL;
const SMALL: u64 = INTERVAL / 20;

const STORIES: &[Story] = &[
    Story {
        name: "children that do nothing",
        tell: |tree| {
            tree.alloc(0, MANY, SMALL);
            tree.fork_often(40);
        },
    },
    Story {
        name: "a parent of which few samples are met",
        tell: |tree| {
            tree.alloc(0, 3 * INTERVAL, INTERVAL / 8);
            tree.fork_often(100);
        },
    },
    Story {
        name: "grandchildren, each generation with blocks of its own",
        tell: |tree| {
            tree.alloc(0, MANY, SMALL);
            for _ in 0..5 {
                let child = tree.fork(0);
                tree.alloc(child, MANY / 3, SMALL);
                for _ in 0..6 {
                    let grandchild = tree.fork(child);
                    tree.alloc(grandchild, MANY / 10, SMALL);
                }
            }
        },
    },
    Story {
        name: "children that free some of what they have inherited",
        tell: |tree| {
            tree.alloc(0, MANY, SMALL);
            for _ in 0..30 {
                let child = tree.fork(0);
                tree.free(child, 50);
            }
        },
    },
    Story {
        name: "children that allocate, beside a parent that goes on",
        tell: |tree| {
            tree.alloc(0, MANY / 4, SMALL);
            for _ in 0..30 {
                let child = tree.fork(0);
                tree.alloc(child, MANY / 4, SMALL);
                tree.alloc(0, MANY / 30, SMALL);
            }
        },
    },
    Story {
        name: "a parent that has another block at one address for each child",
        tell: |tree| {
            for _ in 0..60 {
                tree.processes[0].alloc_at(0x100, INTERVAL / 2);
                tree.fork(0);
                tree.processes[0].free(0);
            }
        },
    },
    Story {
        name: "large blocks, which are samples nearly for certain",
        tell: |tree| {
            tree.alloc(0, 20 * INTERVAL, 2 * INTERVAL);
            tree.alloc(0, MANY, INTERVAL);
            tree.fork_often(10);
        },
    },
];

#[test]
fn intervals_of_trees_hold_the_truth() {
    let (mut tried, mut held) = (0_u32, 0_u32);
    for Story { name, tell } in STORIES {
        let runs: Vec<_> = (1..=SEEDS)
            .map(|seed| {
                let mut tree = Tree::begin(seed);
                tell(&mut tree);
                tree.judged()
            })
            .collect();
        let n = SEEDS as f64;
        let truth = runs.iter().map(|run| run.3).sum::<f64>() / n;
        let errors: Vec<f64> = runs.iter().map(|run| run.2 - run.3).collect();
        let mean = errors.iter().sum::<f64>() / n;
        let deviation = (errors.iter().map(|error| (error - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        let z = mean / (deviation / n.sqrt());
        let (live, peak) = (runs.iter().filter(|run| run.0).count(), runs.iter().filter(|run| run.1).count());
        println!("{name}: truth {truth:.0}, z {z:+.2}, {live} (peaks {peak}) of {SEEDS} intervals hold the truth");
        assert!(z.abs() < 3.5, "{name}: the mean is off by {mean} from {truth}, z {z}");
        // 95 %, give or take 3. With few samples the possible numbers lie far apart.
        assert!(live * 100 >= 91 * runs.len(), "{name}: {live} of {SEEDS}");
        assert!(peak * 100 >= 91 * runs.len(), "{name}: {peak} of {SEEDS} peaks");
        tried += u32::try_from(SEEDS).expect("few");
        held += u32::try_from(live).expect("few");
    }
    let share = f64::from(held) / f64::from(tried);
    println!("{held} of {tried} intervals hold the truth");
    assert!((0.92..=0.98).contains(&share), "{share}");
}
