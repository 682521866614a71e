//! Snapshot files, and reports about them.

use super::texts::assert_harmless;
use heapline_shared_format::snapshot;
use heapline_tools::export::page::Page;
use heapline_tools::export::{folded, massif};
use heapline_tools::frames::Frames;
use heapline_tools::input::moment::At;
use heapline_tools::input::past::Past;
use heapline_tools::input::time::Time;
use heapline_tools::input::tree::Subject;
use heapline_tools::query::blame::Blame;
use heapline_tools::query::filter::Filters;
use heapline_tools::query::overview::Overview;
use heapline_tools::query::report::{Report, Request};
use heapline_tools::query::statistics::By;
use heapline_tools::render::text::Layout;
use heapline_tools::render::{csv, json, text};
use heapline_tools::symbols::Symbolizer;
use std::path::Path;
use unicode_width::UnicodeWidthStr;

/// Reads the bytes as a snapshot file. Writing and reading an accepted snapshot gives an equal
/// snapshot.
pub fn snapshot_reader(bytes: &[u8]) {
    if let Ok(first) = snapshot::read(bytes) {
        let again = snapshot::write(&first, Vec::new(), &mut |_| {}).expect("a vector takes everything");
        assert_eq!(snapshot::read(again.as_slice()).expect("what was just written"), first);
    }
}

/// Reads the bytes as the content of a snapshot's zstd frame. The checksums of all sections are
/// corrected first, because random changes would fail there.
pub fn snapshot_payload(bytes: &[u8]) {
    let mut content = bytes.to_vec();
    mend_checksums(&mut content);
    snapshot_reader(&zstd_frame(&content));
}

/// Corrects the checksum of each section. Layout of a section: tag, version, length in 8 bytes,
/// payload, CRC-32 of the payload.
fn mend_checksums(content: &mut [u8]) {
    let mut rest = content.get_mut(snapshot::MAGIC.len() + 4..).unwrap_or_default();
    while let Some((head, behind)) = rest.split_at_mut_checked(16) {
        let length = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
        let split = usize::try_from(length).ok().and_then(|n| behind.split_at_mut_checked(n));
        let Some((payload, behind)) = split else { return };
        let Some((crc, behind)) = behind.split_at_mut_checked(4) else { return };
        crc.copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        rest = behind;
    }
}

/// Returns a zstd frame with `bytes` in raw blocks and no size in the header.
fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    // Magic; no flags (no size, no checksum, no dictionary); window of 1 MiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 10 << 3];
    let mut blocks = bytes.chunks(100_000).peekable();
    if blocks.peek().is_none() {
        frame.extend([1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let size = u32::try_from(block.len()).expect("chunks of 100,000");
        frame.extend(&(size << 3 | last).to_le_bytes()[..3]);
        frame.extend(block);
    }
    frame
}

/// Makes reports of the first and of the last instant of a history.
fn past(subject: &Subject, request: Request) {
    let (Ok(before), Ok(now)) = (Past::of(subject, &Time::AfterBegin(0)), Past::last(subject)) else { return };
    let request = Request { at: now.moment(), ..request };
    let made = Report::new(request, &now.subject, Some(&before.subject), &mut Symbolizer::new(Vec::new(), None));
    let Ok(mut report) = made else { return };
    report.since = Some(before.instant);
    if let Some(history) = &subject.first().history {
        let mut out = Vec::new();
        text::write(&report, None, LAYOUTS[0], &mut out).expect("a vector takes everything");
        report.keep_growing(history);
        csv::write(&report, &mut out).expect("a vector takes everything");
        assert_harmless(&String::from_utf8(out).expect("reports are text"));
    }
    for layout in [LAYOUTS[0], LAYOUTS[4]] {
        let mut out = Vec::new();
        text::write(&report, None, layout, &mut out).expect("a vector takes everything");
        assert_harmless(&String::from_utf8(out).expect("reports are text"));
    }
    let mut out = Vec::new();
    json::write(&report, None, &mut out).expect("a vector takes everything");
    serde_json::from_slice::<serde::de::IgnoredAny>(&out).expect("JSON");
}

/// Makes the overview of a process, of any width.
fn first_look(subject: &Subject) {
    let plan = Overview::of(subject);
    let parts =
        plan.parts(&Request::default(), subject, &mut Symbolizer::new(Vec::new(), None)).expect("it is by line");
    if let Some(history) = &subject.first().history {
        let tree = |at| {
            let request = Request { by: By::Tree, at, inverted: true, limit: 5, ..Request::default() };
            Report::new(request, subject, None, &mut Symbolizer::new(Vec::new(), None)).expect("it is a tree")
        };
        let mut out = Vec::new();
        massif::write(history, &tree(At::Live), &tree(At::Peak), &mut out).expect("a vector takes everything");
        assert_harmless(&String::from_utf8(out).expect("reports are text"));
    }
    for layout in LAYOUTS {
        let mut out = Vec::new();
        let path = Path::new("a.snap.zst");
        text::overview(&parts, path, layout, &mut out).expect("a vector takes everything");
        let shown = String::from_utf8(out).expect("reports are text");
        assert_harmless(&shown);
        let width = layout.width.unwrap_or(80);
        let wide = shown.lines().find(|line| line.width() > width && !line.starts_with("report "));
        assert_eq!(wide, None, "wider than {width}");
    }
}

/// Looks of a text: for scripts, for terminals of several widths, and with everything.
const LAYOUTS: [Layout; 5] = [
    layout(None, false),
    layout(Some(20), false),
    layout(Some(80), false),
    layout(Some(200), false),
    layout(Some(80), true),
];

const fn layout(width: Option<usize>, is_verbose: bool) -> Layout {
    Layout { width, has_colours: false, is_verbose }
}

/// Makes every kind of report about the bytes as the content of a snapshot. Each report ends and
/// shows no control characters of a terminal. No line is wider than the terminal.
pub fn report(bytes: &[u8]) {
    let mut content = bytes.to_vec();
    mend_checksums(&mut content);
    let Ok(mut snapshot) = snapshot::read(zstd_frame(&content).as_slice()) else { return };
    // Files of this machine must not influence the result: no module path exists.
    snapshot.modules.iter_mut().for_each(|module| module.path.insert(0, '?'));
    let tree = Subject::tree(vec![snapshot.clone(), snapshot.clone()]);
    let subject = Subject::process(snapshot);
    first_look(&subject);
    let all = [By::Filename, By::Lineno, By::Function, By::Module, By::Traceback, By::Tree, By::Size, By::Thread];
    for by in all {
        let at = if by.is_of_live_blocks() { At::Live } else { [At::Live, At::Peak, At::Total][bytes.len() % 3] };
        let request = Request {
            by,
            at,
            domain: None,
            cumulative: bytes.len().is_multiple_of(2) && by.is_of_frames(),
            filters: Filters::default(),
            blame: [None, Some(Blame::Own), Some(Blame::Leaf)][bytes.len() % 7 % 3],
            skip: Vec::new(),
            frames: [Frames::Mixed, Frames::Native, Frames::Python][bytes.len() % 3],
            raw_frames: bytes.len().is_multiple_of(5),
            inverted: bytes.len().is_multiple_of(4),
            fold: bytes.len().is_multiple_of(2),
            start_code: bytes.len().is_multiple_of(3),
            limit: 3,
            ..Request::default()
        };
        for whole in [&subject, &tree] {
            past(whole, request.clone());
        }
        let of_tree = Report::new(request.clone(), &tree, None, &mut Symbolizer::new(Vec::new(), None));
        let report = Report::new(request, &subject, Some(&subject), &mut Symbolizer::new(Vec::new(), None));
        let (Ok(report), Ok(of_tree)) = (report, of_tree) else { continue };
        let shown = |write: &dyn Fn(&mut Vec<u8>) -> std::io::Result<()>| {
            let mut out = Vec::new();
            write(&mut out).expect("a vector takes everything");
            let shown = String::from_utf8(out).expect("reports are text");
            assert_harmless(&shown);
            shown
        };
        for (layout, report) in LAYOUTS.into_iter().flat_map(|layout| [(layout, &report), (layout, &of_tree)]) {
            let text = shown(&|out| text::write(report, None, layout, out));
            if let Some(width) = layout.width.filter(|_| !layout.is_verbose) {
                let wide = text.lines().find(|line| line.width() > width);
                assert_eq!(wide, None, "wider than {width}");
            }
        }
        shown(&|out| csv::write(&report, out));
        shown(&|out| text::markdown(&report, out));
        shown(&|out| text::markdown(&of_tree, out));
        shown(&|out| folded::write(&report, out));
        let page = Page { report: &report, old: Some(&tree), at: None, since: None };
        let mut symbolizer = Symbolizer::new(Vec::new(), None);
        let mut out = Vec::new();
        page.write(None, &mut symbolizer, &mut out).expect("a vector takes everything");
        assert_harmless(&String::from_utf8(out).expect("a page is text"));
        let document = shown(&|out| json::write(&report, None, out));
        serde_json::from_str::<serde::de::IgnoredAny>(&document).expect("JSON");
    }
}
