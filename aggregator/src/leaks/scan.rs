//! The passes of a scan.
//!
//! **All threads stopped**: one pass over a memory that stands still is exact. The threads are let
//! go and stopped again if a thread stands in the middle of a record, or inside realloc: the table
//! does not know the new place of such a block yet.
//!
//! **Threads running**: a pass can be wrong, because a pointer may move behind the back of the
//! pass. A block is lost if the block was live before the first pass, was missed by each pass, and
//! is live after the last pass. Two further rules help:
//! - Blocks that came during a pass are roots of the end of the pass. They may hold what an earlier
//!   place of theirs held, as an array does that grows.
//! - A block was born in a step of the history that ended with the first pass. A block that is
//!   freed and allocated anew at its address has another birth, so it is not taken for the first.
//! - Passes go on until a pass drops no block.
//! - Without a history births are not known. The table is then asked some times more whether the
//!   block is still live: a block that comes and goes with each request is caught when it is gone.
//! - Registers are unknown, so whole stacks are read.

use super::LeakError;
use super::blocks::{Blocks, Row};
use super::heap::{Doubt, Heap};
use super::mark::{Marking, Reached};
use super::memory::{ProcessMemory, Span};
use super::pages::Pages;
use super::roots::{self, Known, Mapping, Thread as Stopped};
use super::stop::Hold;
use super::verdict::{Lost, Sum, verdict};
use crate::job::tracer::Tracer;
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

/// Fewest and most passes while the threads run, and the time between two passes.
const PASSES: u32 = 3;
const MOST_PASSES: u32 = 10;
const APART: Duration = Duration::from_secs(1);
/// Interval between two looks whether the client is still there.
const LOOK: Duration = Duration::from_millis(100);
/// Last looks whether a lost block is still live, and the time between two looks.
const LAST_LOOKS: u32 = 30;
const LAST_LOOK: Duration = Duration::from_millis(7);
/// Attempts to stop all threads outside of records and of realloc, and the time in between.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(25);
/// Longest wait for the table with all threads stopped. A thread stopped in the middle of a record
/// keeps the table waiting.
const TO_SETTLE: Duration = Duration::from_millis(150);

/// Result of a scan.
#[derive(Clone, Debug)]
pub struct Leaks {
    /// Number of the program.
    pub image: u32,
    /// Kind of the scan.
    pub kind: Kind,
    /// Live blocks that were judged.
    pub judged: Sum,
    /// Lost blocks by stack.
    pub lost: BTreeMap<u32, Lost>,
    /// Reasons why some blocks were not judged.
    pub doubts: Vec<Doubt>,
}

/// Kind of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The threads ran.
    Passes(u32),
    /// All threads were stopped for this time.
    Stopped(Duration),
}

/// Scans the process of a tracer. `has_left` says whether nobody waits for the result any more.
pub fn scan(tracer: &Tracer, pid: u32, stops: bool, has_left: impl Fn() -> bool) -> Result<Leaks, LeakError> {
    if stops { stopped(tracer, pid) } else { running(tracer, pid, has_left) }
}

/// One look at the whole process.
struct Pass {
    heap: Heap,
    pages: Pages,
    memory: ProcessMemory,
    reached: Reached,
}

impl Pass {
    /// Marks all blocks that are reached from the roots and the registers. `later` returns spans
    /// that are roots at the end.
    fn run(
        pid: u32,
        heap: Heap,
        threads: &[Stopped],
        later: impl FnOnce(&Blocks, &Reached) -> Result<Vec<Span>, LeakError>,
    ) -> Result<Pass, LeakError> {
        let known = Known {
            ranges: heap.ranges.clone(),
            objects: heap.objects.clone(),
            is_whole: heap.doubts.is_empty(),
            threads: threads.to_vec(),
        };
        let mut memory = ProcessMemory::of(pid);
        let mappings: Vec<Mapping> = roots::scanned(pid)?;
        let pages = Pages::of(pid, &roots::spans(&mappings))?;
        let roots = roots::roots(&mappings, &known, &heap.blocks, &mut memory)?;
        let mut marking = Marking::new(&heap.blocks, &pages, &mut memory);
        for thread in threads {
            marking.words(&thread.registers)?;
        }
        marking.roots(roots)?;
        let spans = later(&heap.blocks, marking.reached())?;
        if !spans.is_empty() {
            // New blocks lie on pages that may be new.
            let pages = Pages::of(pid, &spans)?;
            marking.roots_on(&pages, spans.into_iter())?;
        }
        let reached = marking.finish();
        Ok(Pass { heap, pages, memory, reached })
    }

    /// Returns the blocks that were not reached.
    fn missed(&self) -> Vec<usize> {
        missed(&self.heap.blocks, &self.reached)
    }

    /// Judges lost blocks.
    fn judge(mut self, lost: &[usize], kind: Kind, judged: Sum) -> Result<Leaks, LeakError> {
        let Heap { blocks, image, doubts, .. } = self.heap;
        let lost = verdict(&blocks, lost, &self.pages, &mut self.memory)?;
        Ok(Leaks { image, kind, judged, lost, doubts })
    }
}

fn missed(blocks: &Blocks, reached: &Reached) -> Vec<usize> {
    (0..blocks.len()).filter(|&index| !reached.has(index)).collect()
}

fn sum(blocks: &Blocks) -> Sum {
    Sum { bytes: (0..blocks.len()).map(|index| blocks.size(index)).sum(), blocks: blocks.len() as u64 }
}

fn stopped(tracer: &Tracer, pid: u32) -> Result<Leaks, LeakError> {
    for attempt in 1.. {
        let is_last = attempt == ATTEMPTS;
        let hold = Hold::begin(pid)?;
        let open = tracer.native_within(TO_SETTLE)?;
        let is_settled = open.as_ref().is_some_and(|open| open.in_realloc == 0);
        if !is_settled && !is_last {
            hold.end()?;
            thread::sleep(PAUSE);
            continue;
        }
        let mut heap = open.map(Heap::of).ok_or(LeakError::Unsettled)?.ok_or(LeakError::Ended)?;
        let in_realloc = heap.in_realloc;
        heap.doubts.extend((in_realloc > 0).then_some(Doubt::Reallocs { blocks: in_realloc }));
        let pass = Pass::run(pid, heap, hold.threads(), |_, _| Ok(Vec::new()))?;
        let (lost, judged) = (pass.missed(), sum(&pass.heap.blocks));
        let mut leaks = pass.judge(&lost, Kind::Stopped(Duration::ZERO), judged)?;
        leaks.kind = Kind::Stopped(hold.end()?);
        return Ok(leaks);
    }
    Err(LeakError::Unsettled)
}

fn running(tracer: &Tracer, pid: u32, has_left: impl Fn() -> bool) -> Result<Leaks, LeakError> {
    let mut judged = Sum::default();
    // Blocks that were missed by all passes so far, by rising address.
    let mut candidates: Option<Vec<Row>> = None;
    for number in 1.. {
        let heap = Heap::of(tracer.native()?).ok_or(LeakError::Ended)?;
        let (image, is_first, present) = (heap.image, candidates.is_none(), heap.present);
        let mut after = None;
        let pass = Pass::run(pid, heap, &[], |blocks, reached| {
            if is_first {
                judged = sum(blocks);
            }
            if missed(blocks, reached).is_empty() {
                return Ok(Vec::new());
            }
            let now = Heap::of(tracer.native()?).ok_or(LeakError::Ended)?;
            if now.image != image {
                return Err(LeakError::Ended);
            }
            let came = (0..now.blocks.len()).filter(|&index| !has(blocks, now.blocks.row(index)));
            let spans = came.map(|index| now.blocks.reach(index)).collect();
            after = Some(now.blocks);
            Ok(spans)
        })?;
        let stays = |row: Row| after.as_ref().is_some_and(|after| has(after, row));
        let was_missed = |row: &Row| candidates.as_ref().is_none_or(|rows| rows.binary_search(row).is_ok());
        let mut lost = pass.missed();
        lost.retain(|&index| was_missed(&pass.heap.blocks.row(index)) && stays(pass.heap.blocks.row(index)));
        let is_settled = candidates.as_ref().is_some_and(|rows| rows.len() == lost.len());
        if number >= PASSES && is_settled || number == MOST_PASSES || lost.is_empty() {
            let lost = if present.is_some() { lost } else { lasting(tracer, &pass.heap.blocks, lost)? };
            return pass.judge(&lost, Kind::Passes(number), judged);
        }
        candidates = Some(lost.iter().map(|&index| pass.heap.blocks.row(index)).collect());
        drop(pass);
        let begun = Instant::now();
        while begun.elapsed() < APART {
            if has_left() {
                return Err(LeakError::Left);
            }
            thread::sleep(LOOK);
        }
    }
    Err(LeakError::Left)
}

/// Returns the blocks that are live at each of several looks.
fn lasting(tracer: &Tracer, blocks: &Blocks, mut lost: Vec<usize>) -> Result<Vec<usize>, LeakError> {
    for _ in 0..LAST_LOOKS {
        if lost.is_empty() {
            break;
        }
        let rows = lost.iter().map(|&index| blocks.row(index)).map(|row| (row.address, row.stack)).collect();
        let mut are_live = tracer.are_live(rows)?.into_iter();
        lost.retain(|_| are_live.next() == Some(true));
        thread::sleep(LAST_LOOK);
    }
    Ok(lost)
}

/// Whether a block is in the index.
fn has(blocks: &Blocks, row: Row) -> bool {
    blocks.at(row.address).is_some_and(|index| blocks.row(index) == row)
}
