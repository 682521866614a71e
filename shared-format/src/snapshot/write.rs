//! Writes a snapshot to a file.
//!
//! Sections are encoded one after another into a shared buffer, because a section's length stands
//! before the payload and the checksum behind it. The compressor gets the buffer in pieces, so that
//! a caller can show progress.
//!
//! The order of rows is kept. Sorted tables (live by domain, stack, thread, size; totals by domain,
//! stack) make the smallest files.

use super::domain::Tables;
use super::history::{DomainStep, History, Mark, ProcessStep, Step};
use super::model::{
    Ancestor, Code, Domain, DomainTotals, Frame, LiveGroup, Mixed, Module, NamedFrame, NamedModule, Node, Sampled,
    SharedSample, Snapshot, Stack, StackTotals, Thread, ThreadCalls, ThreadTotals,
};
use super::varint::{Delta, put, put_bytes, zigzag};
use super::{MAGIC, VERSION, check, section};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// A fast level: on these tables the size is within some per cent of the slow levels.
const ZSTD_LEVEL: i32 = 3;
/// Bytes between two calls of the progress function.
const PIECE_BYTES: usize = 1 << 20;

/// Writes `snapshot` to `out` as a zstd frame and returns `out`. The caller flushes and syncs
/// `out`.
///
/// `progress` gets the number of bytes encoded so far, before compression.
///
/// # Errors
///
/// - [`io::ErrorKind::InvalidInput`] for a snapshot with contradicting tables, before any byte is
///   written.
/// - The errors of `out`.
pub fn write<W: Write>(snapshot: &Snapshot, out: W, progress: &mut dyn FnMut(u64)) -> io::Result<W> {
    check::all(snapshot).map_err(|(tag, bad)| {
        let text = format!("row {} of section {} {}", bad.row, tag.escape_ascii(), bad.what);
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    let mut sections = Sections { out: encoder, payload: Vec::new(), written: 0, count: 0, progress };
    sections.head()?;
    let s = snapshot;
    sections.section(section::META, |out| serde_json::to_writer(out, &s.meta).map_err(io::Error::from))?;
    if let Some(origin) = &s.origin {
        sections.section(section::ORIGIN, |out| serde_json::to_writer(out, origin).map_err(io::Error::from))?;
    }
    sections.table(section::MODULES, &s.modules, modules)?;
    if !s.codes.is_empty() {
        sections.table(section::CODES, &s.codes, codes)?;
    }
    sections.table(section::FRAMES, &s.frames, frames)?;
    if !s.by_frame_pointer.is_empty() {
        sections.table(section::WALKED, &s.by_frame_pointer, by_frame_pointer)?;
    }
    sections.table(section::NODES, &s.nodes, nodes)?;
    sections.table(section::STACKS, &s.stacks, stacks)?;
    if !s.mixed.is_empty() {
        sections.table(section::MIXED, &s.mixed, mixed)?;
    }
    sections.table(section::THREADS, &s.threads, threads)?;
    if s.sampled.len() + s.calls.len() > 0 {
        sections.section(section::SAMPLED, |out| {
            table(out, &s.sampled, sampled);
            table(out, &s.calls, calls);
            Ok(())
        })?;
    }
    let [domain_rows, reserved_domains, pool_domains] = split(&s.domains, |row| row.domain);
    let [live_rows, reserved_live, pool_live] = split(&s.live, |row| row.domain);
    let [totals_rows, reserved_totals, pool_totals] = split(&s.totals, |row| row.domain);
    sections.table(section::DOMAINS, domain_rows, domains)?;
    sections.table(section::LIVE, live_rows, live)?;
    sections.table(section::TOTALS, totals_rows, totals)?;
    if !s.thread_totals.is_empty() {
        sections.table(section::THREAD_TOTALS, &s.thread_totals, thread_totals)?;
    }
    if reserved_domains.len() + reserved_live.len() + reserved_totals.len() > 0 {
        sections.section(section::RESERVED, |out| {
            table(out, reserved_domains, domains);
            table(out, reserved_live, live);
            table(out, reserved_totals, totals);
            Ok(())
        })?;
    }
    if !pool_domains.is_empty() {
        sections.section(section::POOLS, |out| {
            table(out, &pool_names(pool_domains), texts);
            table(out, pool_domains, domains);
            table(out, pool_live, live);
            table(out, pool_totals, totals);
            Ok(())
        })?;
    }
    if let Some(draws) = &s.draws {
        sections.section(section::DRAWS, |out| {
            put(out, draws.by);
            put(out, draws.shared_end.into());
            table(out, &draws.ancestors, ancestors);
            table(out, &draws.shared, shared);
            Ok(())
        })?;
    }
    if !s.names.is_empty() {
        sections.section(section::NAMES, |out| {
            table(out, &s.names.texts, texts);
            table(out, &s.names.modules, named_modules);
            table(out, &s.names.frames, named_frames);
            Ok(())
        })?;
    }
    if let Some(history) = &s.history {
        sections.section(section::HISTORY, |out| {
            put_history(out, history);
            Ok(())
        })?;
    }
    let count = sections.count;
    sections.section(section::END, |out| {
        put(out, count);
        Ok(())
    })?;
    sections.out.finish()
}

struct Sections<'p, W: Write> {
    out: zstd::Encoder<'static, W>,
    payload: Vec<u8>,
    written: u64,
    count: u64,
    progress: &'p mut dyn FnMut(u64),
}

impl<W: Write> Sections<'_, W> {
    fn head(&mut self) -> io::Result<()> {
        self.put(&MAGIC)?;
        self.put(&VERSION.to_le_bytes())
    }

    fn table<T>(&mut self, tag: [u8; 4], rows: &[T], encode: fn(&mut Vec<u8>, &[T])) -> io::Result<()> {
        self.section(tag, |out| {
            table(out, rows, encode);
            Ok(())
        })
    }

    fn section(&mut self, tag: [u8; 4], encode: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        encode(&mut payload)?;
        self.put(&tag)?;
        self.put(&section::VERSION.to_le_bytes())?;
        self.put(&(payload.len() as u64).to_le_bytes())?;
        for piece in payload.chunks(PIECE_BYTES) {
            self.put(piece)?;
            (self.progress)(self.written);
        }
        self.put(&crc32fast::hash(&payload).to_le_bytes())?;
        self.payload = payload;
        self.count += 1;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn table<T>(out: &mut Vec<u8>, rows: &[T], encode: fn(&mut Vec<u8>, &[T])) {
    put(out, rows.len() as u64);
    encode(out, rows);
}

/// Splits rows by the tables of the file that hold the domains.
fn split<T>(rows: &[T], domain: impl Fn(&T) -> Domain) -> [&[T]; 3] {
    let (first, rest) = rows.split_at(rows.partition_point(|row| domain(row).tables() < Tables::Reserved));
    let (reserved, pools) = rest.split_at(rest.partition_point(|row| domain(row).tables() < Tables::Pools));
    [first, reserved, pools]
}

/// Lists the known names of the pools.
fn pool_names(rows: &[DomainTotals]) -> Vec<String> {
    let name = |row: &DomainTotals| if let Domain::Pool(pool) = row.domain { pool.name() } else { None };
    rows.iter().filter_map(name).collect()
}

/// Returns 0 for none, otherwise the index plus 1.
fn optional(index: Option<u32>) -> u64 {
    index.map_or(0, |index| u64::from(index) + 1)
}

fn modules(out: &mut Vec<u8>, rows: &[Module]) {
    for row in rows {
        put_bytes(out, row.path.as_bytes());
        put_bytes(out, &row.build_id);
        put(out, row.start);
        put(out, row.end - row.start);
        put(out, row.start.wrapping_sub(row.bias));
        put(out, row.loaded.into());
    }
}

fn codes(out: &mut Vec<u8>, rows: &[Code]) {
    for row in rows {
        put_bytes(out, row.filename.as_bytes());
        put_bytes(out, row.name.as_bytes());
        put(out, row.first_line.into());
        put(out, u64::from(row.lines as u8));
        put_bytes(out, &row.line_table);
    }
}

fn frames(out: &mut Vec<u8>, rows: &[Frame]) {
    let mut address = Delta::default();
    for row in rows {
        address.put(out, row.address);
        put(out, optional(row.module));
    }
}

fn by_frame_pointer(out: &mut Vec<u8>, rows: &[u32]) {
    let mut frame = Delta::default();
    for &row in rows {
        frame.put(out, row.into());
    }
}

fn nodes(out: &mut Vec<u8>, rows: &[Node]) {
    let mut frame = Delta::default();
    for (index, row) in rows.iter().enumerate() {
        // The distance to the parent is small, because the new nodes of a stack are neighbours.
        put(out, row.parent.map_or(0, |parent| index as u64 - u64::from(parent)));
        frame.put(out, row.frame.into());
    }
}

fn stacks(out: &mut Vec<u8>, rows: &[Stack]) {
    let mut leaf = Delta::default();
    for row in rows {
        leaf.put(out, optional(row.leaf));
        put(out, u64::from(row.total_nframe) << 1 | u64::from(row.truncated));
    }
}

fn mixed(out: &mut Vec<u8>, rows: &[Mixed]) {
    let (mut stack, mut python) = (Delta::default(), Delta::default());
    for row in rows {
        stack.put(out, row.stack.into());
        python.put(out, row.python.into());
    }
}

fn sampled(out: &mut Vec<u8>, rows: &[Sampled]) {
    let (mut stack, mut interval) = (Delta::default(), Delta::default());
    for row in rows {
        stack.put(out, row.stack.into());
        interval.put(out, row.interval);
        put(out, row.size);
    }
}

fn ancestors(out: &mut Vec<u8>, rows: &[Ancestor]) {
    for row in rows {
        put(out, row.by);
        put(out, row.end.into());
    }
}

fn shared(out: &mut Vec<u8>, rows: &[SharedSample]) {
    let (mut live, mut address) = (Delta::default(), Delta::default());
    for row in rows {
        live.put(out, row.live.into());
        address.put(out, row.address);
    }
}

fn calls(out: &mut Vec<u8>, rows: &[ThreadCalls]) {
    for row in rows {
        put(out, row.thread.into());
        put(out, row.domain.code());
        for value in [row.allocs, row.bytes, row.frees] {
            put(out, value);
        }
    }
}

fn threads(out: &mut Vec<u8>, rows: &[Thread]) {
    for row in rows {
        put(out, row.tid.into());
        put_bytes(out, row.name.as_bytes());
        put(out, row.alive.into());
    }
}

fn domains(out: &mut Vec<u8>, rows: &[DomainTotals]) {
    for row in rows {
        put(out, row.domain.code());
        for value in [row.current, row.peak, row.blocks, row.allocs, row.frees, row.allocated_bytes] {
            put(out, value);
        }
    }
}

fn live(out: &mut Vec<u8>, rows: &[LiveGroup]) {
    let (mut domain, mut stack, mut thread) = (Delta::default(), Delta::default(), Delta::default());
    for row in rows {
        domain.put(out, row.domain.code());
        stack.put(out, row.stack.into());
        thread.put(out, row.thread.into());
        put(out, row.size);
        put(out, row.count);
    }
}

fn totals(out: &mut Vec<u8>, rows: &[StackTotals]) {
    let (mut domain, mut stack) = (Delta::default(), Delta::default());
    for row in rows {
        domain.put(out, row.domain.code());
        stack.put(out, row.stack.into());
        for value in [row.peak_size, row.peak_count, row.total_size, row.total_count] {
            put(out, value);
        }
    }
}

fn texts(out: &mut Vec<u8>, rows: &[String]) {
    rows.iter().for_each(|row| put_bytes(out, row.as_bytes()));
}

fn named_modules(out: &mut Vec<u8>, rows: &[NamedModule]) {
    let mut module = Delta::default();
    for row in rows {
        module.put(out, row.module.into());
        put(out, row.has_lines.into());
        put(out, row.is_incomplete.into());
    }
}

fn named_frames(out: &mut Vec<u8>, rows: &[NamedFrame]) {
    let (mut frame, mut function, mut file, mut lineno) = <(Delta, Delta, Delta, Delta)>::default();
    for row in rows {
        frame.put(out, row.frame.into());
        put(out, row.places.len() as u64);
        for place in &row.places {
            function.put(out, optional(place.function));
            file.put(out, optional(place.line.map(|(file, _)| file)));
            if let Some((_, line)) = place.line {
                lineno.put(out, line.into());
            }
        }
    }
}

fn put_history(out: &mut Vec<u8>, history: &History) {
    put(out, history.begun);
    put(out, zigzag(history.utc_offset.into()));
    put(out, history.apart);
    table(out, &history.steps, steps);
    table(out, &history.marks, marks);
}

fn steps(out: &mut Vec<u8>, rows: &[Step]) {
    let mut end = Delta::default();
    let mut domains: BTreeMap<Domain, [Delta; DomainStep::COLUMNS]> = BTreeMap::new();
    let mut process = <[Delta; ProcessStep::COLUMNS]>::default();
    for row in rows {
        end.put(out, row.end);
        put(out, row.domains.len() as u64);
        for row in &row.domains {
            put(out, row.domain.code());
            let columns = domains.entry(row.domain).or_default();
            columns.iter_mut().zip(row.columns()).for_each(|(column, value)| column.put(out, value));
        }
        put(out, row.process.is_some().into());
        if let Some(row) = &row.process {
            process.iter_mut().zip(row.columns()).for_each(|(column, value)| column.put(out, value));
        }
        put_bytes(out, row.changes.as_bytes());
    }
}

fn marks(out: &mut Vec<u8>, rows: &[Mark]) {
    let mut at = Delta::default();
    for row in rows {
        at.put(out, row.at);
        put_bytes(out, row.kind.as_bytes());
        put_bytes(out, row.text.as_bytes());
    }
}

fn thread_totals(out: &mut Vec<u8>, rows: &[ThreadTotals]) {
    let (mut domain, mut thread) = (Delta::default(), Delta::default());
    for row in rows {
        domain.put(out, row.domain.code());
        thread.put(out, row.thread.into());
        for value in [row.peak_size, row.peak_count, row.total_size, row.total_count] {
            put(out, value);
        }
    }
}
