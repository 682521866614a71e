//! Records, applied as the aggregator does, up to the written snapshot.

use super::to_words;
use heapline_aggregator::process::image::Image;
use heapline_aggregator::session::arena_map::ArenaMap;
use heapline_aggregator::snapshot::build::{About, build};
use heapline_aggregator::snapshot::cut::{Counters, Figures, OpenCut};
use heapline_aggregator::table::Table;
use heapline_aggregator::table::codes::{Codes, Partial};
use heapline_aggregator::table::order::{Mark, Order};
use heapline_shared_format::code::LineFormat;
use heapline_shared_format::event::NOT_BEGUN;
use heapline_shared_format::snapshot::{self, Code, Domain, End};
use std::cell::OnceCell;
use std::time::Duration;

/// Applies arbitrary records of three rings, in pieces, with polls in between. The sums agree with
/// the blocks, and a written snapshot can be read.
pub fn table(bytes: &[u8]) {
    let words = to_words(bytes);
    let mut order = Order::default();
    let mut table = Table::new(8, 0);
    for slot in 0..3 {
        order.open(slot, table.ring(10 + slot, slot == 2));
    }
    let mut rest = words.as_slice();
    // A snapshot of an instant in the middle, copied while the records go on.
    let mut early = None;
    // The first word of a piece holds the piece's length, the slot of the ring, and the result of
    // the poll before the piece.
    while let Some((&head, behind)) = rest.split_first() {
        let length = usize::try_from(head & 63).expect("six bits").min(behind.len());
        let slot = u32::try_from(head >> 6 & 3).expect("two bits");
        let (piece, behind) = behind.split_at(length);
        order.push(slot, piece.to_vec(), &mut table);
        let flagged: Vec<u32> = (0..3).filter(|slot| head >> (8 + slot) & 1 == 1).collect();
        let wall = Duration::from_millis(head >> 32 & 0xfff);
        let mark = match wall.subsec_millis() % 2 {
            0 => Mark { time: head >> 16, wall, in_flight: flagged, unread: Vec::new() },
            _ => Mark { time: head >> 16, wall, in_flight: Vec::new(), unread: flagged },
        };
        order.advance(&mark, &mut table);
        match head >> 11 & 31 {
            0 => order.close(slot),
            1 => order.open(slot, table.ring(20, false)),
            2 => table.reset_peak(),
            3 => table.clear_traces(),
            4 if early.is_none() => {
                let figures = figures(&table);
                early = Some(OpenCut::of(&mut table, figures, None, 8));
            }
            5 => drop(table.copy_some(Duration::from_micros(1))),
            _ => {}
        }
        let _ = table.take_answer();
        rest = behind;
    }
    order.finish(&mut table);
    let figures = figures(&table);
    check(&figures);
    // A file takes a hundred times longer than all other work, so only some inputs write files.
    if bytes.len().is_multiple_of(64) {
        let last = OpenCut::of(&mut table, figures, None, 8);
        drop(table);
        early.into_iter().chain([last]).for_each(write);
    }
}

fn figures(table: &Table) -> Figures {
    thread_local!(static MAP: OnceCell<ArenaMap> = const { OnceCell::new() });
    MAP.with(|map| {
        let map = map.get_or_init(|| ArenaMap::create(1).expect("an arena"));
        Figures::of(table, &Image::default(), map, &Counters::read(map), None)
    })
}

/// Checks the sums of the table.
fn check(figures: &Figures) {
    for totals in &figures.domains {
        assert!(totals.peak >= totals.current, "{totals:?}");
        if matches!(totals.domain, Domain::Mmap | Domain::Reserved) {
            // Ranges are split, so there may be more blocks than mappings were made. No range is
            // empty.
            assert_eq!(totals.current == 0, totals.blocks == 0, "{totals:?}");
        } else {
            assert!(totals.allocs >= totals.frees && totals.allocs - totals.frees >= totals.blocks, "{totals:?}");
        }
    }
}

/// Writes a snapshot and reads it. The blocks agree with the sums.
fn write(cut: OpenCut) {
    let about = About { pid: 1, end: End::Exited, exit_status: None, notes: Vec::new(), origin: None };
    let snapshot = build(cut.wait().expect("the table has completed its copies"), about);
    for totals in &snapshot.domains {
        let live = snapshot.live.iter().filter(|group| group.domain == totals.domain);
        assert_eq!(live.map(|group| group.count).sum::<u64>(), totals.blocks, "{totals:?}");
    }
    let file = snapshot::write(&snapshot, Vec::new(), &mut |_| {}).expect("what the table holds is a snapshot");
    assert_eq!(snapshot::read(file.as_slice()).expect("what was just written"), snapshot);
}

/// Reads the description of a code object, in two pieces, and a line table in every format.
pub fn code_description(bytes: &[u8]) {
    let (mut codes, mut partial) = (Codes::default(), Partial::default());
    let (first, rest) = bytes.split_at(bytes.len() / 3);
    let begun = codes.describe(&mut partial, 5, true, first.iter().copied());
    let ended = codes.describe(&mut partial, 5, false, rest.iter().copied());
    if let (Ok(_), Ok(true), Some(code)) = (begun, ended, codes.get(5)) {
        assert!(code.filename.len() + code.name.len() + code.line_table.len() <= 4 * bytes.len());
    }
    let known = codes.get(5).map(|code| Code::clone(code));
    for lines in [LineFormat::Lnotab, LineFormat::LineTable, LineFormat::Locations] {
        let any =
            Code { filename: String::new(), name: String::new(), first_line: 7, lines, line_table: bytes.to_vec() };
        for code in [Some(&any), known.as_ref()].into_iter().flatten() {
            for offset in [0, 1, 2, 100, 70_000, NOT_BEGUN] {
                let _ = code.line(offset);
            }
        }
    }
}
