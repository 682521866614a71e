//! The native blocks of a process at one instant, and all that the scan must know besides.

use super::blocks::{Blocks, Builder, Row};
use super::memory::Span;
use crate::questions::native::NativeCut;
use crate::snapshot::cut::Figures;
use crate::table::births::Birth;
use heapline_shared_format::snapshot::Begun;
use heapline_shared_format::text::{counted, size};

/// Reasons why blocks are missing in the table. Memory between known blocks may then be a block.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the sentence says what each means")]
pub enum Doubt {
    Attached,
    Sampled { interval: u64 },
    Cleared,
    LeftOut { allocations: u64 },
    LostRecords { records: u64 },
    Foreign,
    Overlaps { blocks: u64 },
    Reallocs { blocks: u64 },
}

impl Doubt {
    /// Describes the doubt for a user.
    pub fn sentence(&self) -> String {
        match self {
            Doubt::Attached => {
                "blocks from before the attach are not judged, and all that they hold is not lost".into()
            }
            Doubt::Sampled { interval } => format!(
                "one in {} of allocated bytes is known: lost blocks are those among the samples",
                size(*interval)
            ),
            Doubt::Cleared => "the traces were cleared: blocks from before are not judged".into(),
            Doubt::LeftOut { allocations } => {
                format!("{} during pauses are not judged", counted(*allocations, "allocation"))
            }
            Doubt::LostRecords { records } => format!("{} were lost", counted(*records, "record")),
            Doubt::Foreign => "some blocks are not recorded, and are not judged".into(),
            Doubt::Overlaps { blocks } => {
                format!("{} contain other blocks: an allocator stands on another allocator", counted(*blocks, "block"))
            }
            Doubt::Reallocs { blocks } => format!("{} were inside realloc", counted(*blocks, "block")),
        }
    }
}

/// Returns the reasons why blocks are missing in a cut.
fn doubts(figures: &Figures) -> impl Iterator<Item = Doubt> {
    let Figures { begun, sample_interval: interval, cleared, left_out: allocations, unseen, lost, .. } = figures;
    let (interval, allocations) = (*interval, *allocations);
    let doubts = [
        (*begun == Begun::Attach).then_some(Doubt::Attached),
        (interval != 0).then_some(Doubt::Sampled { interval }),
        (*cleared != 0).then_some(Doubt::Cleared),
        (allocations != 0).then_some(Doubt::LeftOut { allocations }),
        (!lost.is_empty()).then(|| Doubt::LostRecords { records: lost.values().sum() }),
        (unseen.foreign_places != 0 || unseen.unseen_starts != 0).then_some(Doubt::Foreign),
    ];
    doubts.into_iter().flatten()
}

/// The blocks of an instant.
pub struct Heap {
    /// The index of the blocks.
    pub blocks: Blocks,
    /// Number of the program.
    pub image: u32,
    /// Ranges mapped by recorded calls, by rising address.
    pub ranges: Vec<Span>,
    /// Places of the loaded objects.
    pub objects: Vec<Span>,
    /// Blocks inside of realloc.
    pub in_realloc: u64,
    /// Birth of blocks that are born at the instant; none where births are not known.
    pub present: Option<Birth>,
    /// Reasons why blocks are missing.
    pub doubts: Vec<Doubt>,
}

impl Heap {
    /// Waits for the blocks of a cut, and makes the index. None if the table is gone before the
    /// end.
    pub fn of(cut: NativeCut) -> Option<Heap> {
        let NativeCut { copy, tree, ranges, objects, in_realloc, present, figures } = cut;
        let mut builder = Builder::default();
        copy.collect(|block, count| {
            // The table holds the represented bytes of a sample.
            let size = tree.sample(block.stack).map_or(block.size, |sample| sample.size);
            builder.add(Row { address: block.address, size, stack: block.stack, birth: block.birth }, count);
        })?;
        let blocks = builder.finish();
        let overlaps = Some(blocks.overlaps()).filter(|&blocks| blocks > 0);
        let doubts = doubts(&figures).chain(overlaps.map(|blocks| Doubt::Overlaps { blocks })).collect();
        let (ranges, objects) = (spans(&ranges), spans(&objects));
        Some(Heap { blocks, image: figures.image.number, ranges, objects, in_realloc, present, doubts })
    }
}

/// Returns the spans of pairs, by rising address.
fn spans(pairs: &[(u64, u64)]) -> Vec<Span> {
    let mut spans: Vec<Span> = pairs.iter().filter_map(|&(start, end)| Span::between(start, end)).collect();
    spans.sort_unstable();
    spans
}
