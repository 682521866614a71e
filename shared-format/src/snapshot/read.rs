//! Reads a snapshot from a file.
//!
//! The file is untrusted: it may be cut, damaged, foreign, newer or hostile.
//!
//! - Every error names the section.
//! - Memory use stays in proportion to the bytes actually read.
//! - A returned snapshot has passed every rule of `check`.
//! - Sections with unknown tags are skipped, so an old `report` reads the files of later Heaplines.

use super::check::{self, BadRow};
use super::domain::Tables as Of;
use super::error::ReadError;
use super::history::{Changes, DomainStep, History, Mark, ProcessStep, Step};
use super::model::{
    Ancestor, Code, Domain, DomainTotals, Draws, Frame, LiveGroup, Mixed, Module, NamedFrame, NamedModule, Names, Node,
    Place, Sampled, SharedSample, Snapshot, Stack, StackTotals, Thread, ThreadCalls, ThreadTotals,
};
use super::payload::{Payload, Problem, narrow};
use super::stream::Stream;
use super::varint::{Delta, unzigzag};
use super::{MAGIC, VERSION, pools, section};
use crate::code::LineFormat;
use std::collections::BTreeMap;
use std::io::Read;

/// Reads a snapshot from the start of `input` to the end.
///
/// # Errors
///
/// See [`ReadError`]. No error causes a panic, or memory use out of proportion to the input.
pub fn read<R: Read>(input: R) -> Result<Snapshot, ReadError> {
    let mut stream = Stream::new(input)?;
    head(&mut stream)?;
    let mut tables = Tables::default();
    let mut seen: Vec<[u8; 4]> = Vec::new();
    let mut count = 0_u64;
    loop {
        stream.place = match seen.last() {
            Some(tag) => format!("what follows section {}", tag.escape_ascii()),
            None => "what follows the head".to_string(),
        };
        let (tag, bytes) = section_head(&mut stream)?;
        let known = is_known(tag);
        if known && seen.contains(&tag) {
            return Err(corrupt(&stream, "it appears a second time"));
        }
        let mut payload = Payload::new(&mut stream, bytes);
        let decoded = if known { tables.decode(tag, count, &mut payload) } else { Ok(()) };
        finish(payload, decoded, known)?;
        if tag == section::END {
            stream.expect_end()?;
            return tables.into_snapshot(&seen);
        }
        if known {
            seen.push(tag);
        }
        count += 1;
    }
}

fn head<R: Read>(stream: &mut Stream<R>) -> Result<(), ReadError> {
    let mut magic = [0; MAGIC.len()];
    // A complete frame shorter than the magic is foreign, not cut.
    if stream.fill(&mut magic)? < magic.len() || magic != MAGIC {
        return Err(ReadError::Foreign);
    }
    let mut version = [0; 4];
    stream.read_exact(&mut version)?;
    match u32::from_le_bytes(version) {
        VERSION => Ok(()),
        0 => Err(corrupt(stream, "its version is 0")),
        found => Err(ReadError::Newer { part: "the snapshot".to_string(), found, wanted: VERSION }),
    }
}

/// Reads the tag and the length of the next section.
fn section_head<R: Read>(stream: &mut Stream<R>) -> Result<([u8; 4], u64), ReadError> {
    let (mut tag, mut version, mut bytes) = ([0; 4], [0; 4], [0; 8]);
    stream.read_exact(&mut tag)?;
    stream.place = format!("section {}", tag.escape_ascii());
    stream.read_exact(&mut version)?;
    let found = u32::from_le_bytes(version);
    if is_known(tag) && found > section::VERSION {
        return Err(ReadError::Newer { part: stream.place.clone(), found, wanted: section::VERSION });
    }
    stream.read_exact(&mut bytes)?;
    Ok((tag, u64::from_le_bytes(bytes)))
}

fn is_known(tag: [u8; 4]) -> bool {
    use section::{CODES, DRAWS, END, HISTORY, MIXED, NAMES, ORIGIN, POOLS, RESERVED, SAMPLED, THREAD_TOTALS, WALKED};
    let optional = [ORIGIN, CODES, WALKED, MIXED, SAMPLED, THREAD_TOTALS, RESERVED, POOLS, DRAWS, NAMES, HISTORY, END];
    section::REQUIRED.contains(&tag) || optional.contains(&tag)
}

/// Ends a section. Compares the checksum first, because a wrong checksum explains a bad row.
fn finish<R: Read>(payload: Payload<'_, R>, decoded: Result<(), Failure>, whole: bool) -> Result<(), ReadError> {
    let section = payload.place().to_string();
    let left_over = whole && decoded.is_ok() && !payload.is_empty();
    if let Err(Failure::Stream(error)) = decoded {
        return Err(error);
    }
    payload.finish()?;
    match decoded {
        Ok(()) if left_over => Err(ReadError::Corrupt { section, what: "bytes follow its last row".to_string() }),
        Err(Failure::Content(what)) => Err(ReadError::Corrupt { section, what }),
        _ => Ok(()),
    }
}

fn corrupt<R: Read>(stream: &Stream<R>, what: &str) -> ReadError {
    ReadError::Corrupt { section: stream.place.clone(), what: what.to_string() }
}

/// Why a section could not be decoded.
enum Failure {
    Content(String),
    Stream(ReadError),
}

impl From<BadRow> for Failure {
    fn from(bad: BadRow) -> Failure {
        Failure::Content(format!("row {} {}", bad.row, bad.what))
    }
}

fn outside_rows(problem: Problem) -> Failure {
    match problem {
        Problem::Row(what) => Failure::Content(format!("it {what}")),
        Problem::Stream(error) => Failure::Stream(error),
    }
}

/// The tables decoded so far.
#[derive(Default)]
struct Tables {
    meta: Option<super::model::Meta>,
    origin: Option<super::model::Origin>,
    modules: Vec<Module>,
    codes: Vec<Code>,
    frames: Vec<Frame>,
    by_frame_pointer: Vec<u32>,
    nodes: Vec<Node>,
    stacks: Vec<Stack>,
    mixed: Vec<Mixed>,
    sampled: Vec<Sampled>,
    calls: Vec<ThreadCalls>,
    threads: Vec<Thread>,
    domains: Vec<DomainTotals>,
    live: Vec<LiveGroup>,
    totals: Vec<StackTotals>,
    thread_totals: Vec<ThreadTotals>,
    draws: Option<Draws>,
    names: Names,
    history: Option<History>,
}

impl Tables {
    /// Decodes the known section `tag`. `count` is the number of sections before it.
    fn decode<R: Read>(&mut self, tag: [u8; 4], count: u64, payload: &mut Payload<'_, R>) -> Result<(), Failure> {
        match tag {
            section::META => self.meta = Some(json(payload)?),
            section::ORIGIN => self.origin = Some(json(payload)?),
            section::MODULES => {
                self.modules = rows(payload, module)?;
                check::modules(&self.modules)?;
            }
            section::CODES => self.codes = rows(payload, code)?,
            section::FRAMES => {
                let mut address = Delta::default();
                self.frames = rows(payload, |p, _| frame(p, &mut address))?;
                check::frames(&self.frames, self.modules.len(), self.codes.len())?;
            }
            section::WALKED => {
                let mut frame = Delta::default();
                self.by_frame_pointer = rows(payload, |p, _| narrow(frame.value(p.number()?)))?;
                check::by_frame_pointer(&self.by_frame_pointer, self.frames.len())?;
            }
            section::NODES => {
                let mut frame = Delta::default();
                self.nodes = rows(payload, |p, index| node(p, index, &mut frame))?;
                check::nodes(&self.nodes, self.frames.len())?;
            }
            section::STACKS => {
                let mut leaf = Delta::default();
                self.stacks = rows(payload, |p, _| stack(p, &mut leaf))?;
                check::stacks(&self.stacks, self.nodes.len())?;
            }
            section::MIXED => {
                let mut columns = <[Delta; 2]>::default();
                self.mixed = rows(payload, |p, _| mixed(p, &mut columns))?;
                check::mixed(&self.mixed, self.stacks.len())?;
            }
            section::THREADS => self.threads = rows(payload, thread)?,
            section::SAMPLED => {
                let mut columns = <[Delta; 2]>::default();
                self.sampled = rows(payload, |p, _| sampled(p, &mut columns))?;
                check::sampled(&self.sampled, self.stacks.len())?;
                self.calls = rows(payload, thread_calls)?;
                check::calls(&self.calls, self.threads.len())?;
            }
            section::DOMAINS => {
                self.domains = rows(payload, domain_totals)?;
                check::domains(&self.domains)?;
                check::all_of(Of::First, &self.domains, |row| row.domain)?;
            }
            section::LIVE => {
                self.live = live_rows(payload)?;
                check::live(&self.live, self.stacks.len(), self.threads.len())?;
                check::all_of(Of::First, &self.live, |row| row.domain)?;
            }
            section::TOTALS => {
                self.totals = totals_rows(payload)?;
                check::totals(&self.totals, self.stacks.len())?;
                check::all_of(Of::First, &self.totals, |row| row.domain)?;
            }
            section::THREAD_TOTALS => {
                let mut columns = <[Delta; 2]>::default();
                self.thread_totals = rows(payload, |p, _| thread_totals(p, &mut columns))?;
                check::thread_totals(&self.thread_totals, self.threads.len())?;
            }
            section::RESERVED => self.later_domains(Of::Reserved, payload)?,
            section::POOLS => {
                for name in rows(payload, |p, _| p.text())? {
                    let _ = pools::named(&name);
                }
                self.later_domains(Of::Pools, payload)?;
            }
            section::NAMES => self.names = self.names(payload)?,
            section::DRAWS => self.draws = Some(self.draws(payload)?),
            section::HISTORY => self.history = Some(self.history(payload)?),
            _ => {
                let stored = payload.number().map_err(outside_rows)?;
                if stored != count {
                    return Err(Failure::Content(format!("it counts {stored} sections, the file has {count}")));
                }
            }
        }
        Ok(())
    }

    /// Decodes the rows of reserved ranges, and appends them to the rows of the other domains.
    fn later_domains<R: Read>(&mut self, tables: Of, payload: &mut Payload<'_, R>) -> Result<(), Failure> {
        let domains = rows(payload, domain_totals)?;
        check::all_of(tables, &domains, |row| row.domain)?;
        check::domains(&domains)?;
        self.domains.extend(domains);
        let live = live_rows(payload)?;
        check::all_of(tables, &live, |row| row.domain)?;
        check::live(&live, self.stacks.len(), self.threads.len())?;
        self.live.extend(live);
        let totals = totals_rows(payload)?;
        check::all_of(tables, &totals, |row| row.domain)?;
        check::totals(&totals, self.stacks.len())?;
        self.totals.extend(totals);
        Ok(())
    }

    fn draws<R: Read>(&self, payload: &mut Payload<'_, R>) -> Result<Draws, Failure> {
        let by = payload.number().map_err(outside_rows)?;
        let shared_end = payload.number32().map_err(outside_rows)?;
        let ancestors = rows(payload, ancestor)?;
        let mut columns = <[Delta; 2]>::default();
        let shared = rows(payload, |p, _| shared_sample(p, &mut columns))?;
        let draws = Draws { by, ancestors, shared_end, shared };
        check::draws(&draws, self.live.len())?;
        Ok(draws)
    }

    fn names<R: Read>(&self, payload: &mut Payload<'_, R>) -> Result<Names, Failure> {
        let texts = rows(payload, |p, _| p.text())?;
        let mut module = Delta::default();
        let modules = rows(payload, |p, _| named_module(p, &mut module))?;
        let mut columns = <[Delta; 4]>::default();
        let frames = rows(payload, |p, _| named_frame(p, &mut columns))?;
        let names = Names { texts, modules, frames };
        check::names(&names, self.modules.len(), self.frames.len())?;
        Ok(names)
    }

    fn history<R: Read>(&self, payload: &mut Payload<'_, R>) -> Result<History, Failure> {
        let begun = payload.number().map_err(outside_rows)?;
        let utc_offset = unzigzag(payload.number().map_err(outside_rows)?);
        let utc_offset = i32::try_from(utc_offset).map_err(|_| Failure::Content("its time zone is none".to_owned()))?;
        let apart = payload.number().map_err(outside_rows)?;
        let mut columns = StepColumns::default();
        let steps = rows(payload, |p, index| {
            bounded(index, MOST_STEPS, "is beyond 262144 steps")?;
            step(p, &mut columns, self.stacks.len())
        })?;
        let mut at = Delta::default();
        let marks = rows(payload, |p, index| {
            bounded(index, MOST_MARKS, "is beyond 65536 marks")?;
            Ok(Mark { at: at.value(p.number()?), kind: p.text()?, text: p.text()? })
        })?;
        let history = History { begun, utc_offset, apart, steps, marks };
        check::history(&history)?;
        Ok(history)
    }

    fn into_snapshot(self, seen: &[[u8; 4]]) -> Result<Snapshot, ReadError> {
        let missing = |tag: [u8; 4]| ReadError::Corrupt {
            section: format!("section {}", tag.escape_ascii()),
            what: "it is missing".to_string(),
        };
        if let Some(&tag) = section::REQUIRED.iter().find(|tag| !seen.contains(tag)) {
            return Err(missing(tag));
        }
        let Tables { meta, origin, modules, codes, frames, by_frame_pointer, nodes, stacks, mixed, .. } = self;
        let Tables { sampled, calls, threads, domains, live, totals, thread_totals, draws, names, history, .. } = self;
        let meta = meta.ok_or_else(|| missing(section::META))?;
        Ok(Snapshot {
            meta,
            origin,
            modules,
            codes,
            frames,
            by_frame_pointer,
            nodes,
            stacks,
            mixed,
            sampled,
            calls,
            threads,
            domains,
            live,
            totals,
            thread_totals,
            draws,
            names,
            history,
        })
    }
}

fn json<R: Read, T: serde::de::DeserializeOwned>(payload: &mut Payload<'_, R>) -> Result<T, Failure> {
    let json = payload.rest().map_err(outside_rows)?;
    serde_json::from_slice(&json).map_err(|error| Failure::Content(format!("its JSON is wrong ({error})")))
}

/// Reads a count and then the rows. The count is untrusted and allocates nothing: each row takes at
/// least 1 byte of the payload.
fn rows<R: Read, T>(
    payload: &mut Payload<'_, R>,
    mut row: impl FnMut(&mut Payload<'_, R>, u64) -> Result<T, Problem>,
) -> Result<Vec<T>, Failure> {
    let count = payload.number().map_err(outside_rows)?;
    let mut table = Vec::new();
    for index in 0..count {
        table.push(row(payload, index).map_err(|problem| match problem {
            Problem::Row(what) => BadRow { row: index, what }.into(),
            Problem::Stream(error) => Failure::Stream(error),
        })?);
    }
    Ok(table)
}

fn live_rows<R: Read>(payload: &mut Payload<'_, R>) -> Result<Vec<LiveGroup>, Failure> {
    let mut columns = <[Delta; 3]>::default();
    rows(payload, |p, _| live(p, &mut columns))
}

fn totals_rows<R: Read>(payload: &mut Payload<'_, R>) -> Result<Vec<StackTotals>, Failure> {
    let mut columns = <[Delta; 2]>::default();
    rows(payload, |p, _| stack_totals(p, &mut columns))
}

fn optional(value: u64) -> Result<Option<u32>, Problem> {
    value.checked_sub(1).map(narrow).transpose()
}

fn domain(code: u64) -> Result<Domain, Problem> {
    Domain::from_code(code).ok_or_else(|| "names an unknown domain".into())
}

fn module<R: Read>(p: &mut Payload<'_, R>, _: u64) -> Result<Module, Problem> {
    let (path, build_id, start) = (p.text()?, p.bytes()?, p.number()?);
    let end = start.checked_add(p.number()?).ok_or("ends beyond the last address")?;
    let bias = start.wrapping_sub(p.number()?);
    Ok(Module { path, build_id, start, end, bias, loaded: p.flag()? })
}

fn code<R: Read>(p: &mut Payload<'_, R>, _: u64) -> Result<Code, Problem> {
    let (filename, name, first_line) = (p.text()?, p.text()?, p.number32()?);
    let lines = u8::try_from(p.number()?).ok().and_then(LineFormat::from_number);
    let lines = lines.ok_or("has a line table of an unknown kind")?;
    Ok(Code { filename, name, first_line, lines, line_table: p.bytes()? })
}

fn frame<R: Read>(p: &mut Payload<'_, R>, address: &mut Delta) -> Result<Frame, Problem> {
    Ok(Frame { address: address.value(p.number()?), module: optional(p.number()?)? })
}

fn node<R: Read>(p: &mut Payload<'_, R>, index: u64, frame: &mut Delta) -> Result<Node, Problem> {
    let parent = match p.number()? {
        0 => None,
        distance => Some(narrow(index.checked_sub(distance).ok_or("names a parent before the first node")?)?),
    };
    Ok(Node { parent, frame: narrow(frame.value(p.number()?))? })
}

fn stack<R: Read>(p: &mut Payload<'_, R>, leaf: &mut Delta) -> Result<Stack, Problem> {
    let leaf = optional(leaf.value(p.number()?))?;
    let depth = p.number()?;
    let total_nframe = u16::try_from(depth >> 1).map_err(|_| "is deeper than 65535 frames")?;
    Ok(Stack { leaf, total_nframe, truncated: depth & 1 == 1 })
}

fn mixed<R: Read>(p: &mut Payload<'_, R>, [stack, python]: &mut [Delta; 2]) -> Result<Mixed, Problem> {
    Ok(Mixed { stack: narrow(stack.value(p.number()?))?, python: narrow(python.value(p.number()?))? })
}

fn sampled<R: Read>(p: &mut Payload<'_, R>, [stack, interval]: &mut [Delta; 2]) -> Result<Sampled, Problem> {
    let (stack, interval) = (narrow(stack.value(p.number()?))?, interval.value(p.number()?));
    Ok(Sampled { stack, interval, size: p.number()? })
}

fn ancestor<R: Read>(p: &mut Payload<'_, R>, _: u64) -> Result<Ancestor, Problem> {
    Ok(Ancestor { by: p.number()?, end: p.number32()? })
}

fn shared_sample<R: Read>(p: &mut Payload<'_, R>, [live, address]: &mut [Delta; 2]) -> Result<SharedSample, Problem> {
    Ok(SharedSample { live: narrow(live.value(p.number()?))?, address: address.value(p.number()?) })
}

fn thread_calls<R: Read>(p: &mut Payload<'_, R>, _: u64) -> Result<ThreadCalls, Problem> {
    let (thread, domain) = (p.number32()?, domain(p.number()?)?);
    Ok(ThreadCalls { thread, domain, allocs: p.number()?, bytes: p.number()?, frees: p.number()? })
}

fn thread<R: Read>(p: &mut Payload<'_, R>, _: u64) -> Result<Thread, Problem> {
    Ok(Thread { tid: p.number32()?, name: p.text()?, alive: p.flag()? })
}

fn domain_totals<R: Read>(p: &mut Payload<'_, R>, _: u64) -> Result<DomainTotals, Problem> {
    Ok(DomainTotals {
        domain: domain(p.number()?)?,
        current: p.number()?,
        peak: p.number()?,
        blocks: p.number()?,
        allocs: p.number()?,
        frees: p.number()?,
        allocated_bytes: p.number()?,
    })
}

fn live<R: Read>(p: &mut Payload<'_, R>, [code, stack, thread]: &mut [Delta; 3]) -> Result<LiveGroup, Problem> {
    Ok(LiveGroup {
        domain: domain(code.value(p.number()?))?,
        stack: narrow(stack.value(p.number()?))?,
        thread: narrow(thread.value(p.number()?))?,
        size: p.number()?,
        count: p.number()?,
    })
}

fn stack_totals<R: Read>(p: &mut Payload<'_, R>, [code, stack]: &mut [Delta; 2]) -> Result<StackTotals, Problem> {
    Ok(StackTotals {
        domain: domain(code.value(p.number()?))?,
        stack: narrow(stack.value(p.number()?))?,
        peak_size: p.number()?,
        peak_count: p.number()?,
        total_size: p.number()?,
        total_count: p.number()?,
    })
}

fn named_module<R: Read>(p: &mut Payload<'_, R>, module: &mut Delta) -> Result<NamedModule, Problem> {
    Ok(NamedModule { module: narrow(module.value(p.number()?))?, has_lines: p.flag()?, is_incomplete: p.flag()? })
}

fn named_frame<R: Read>(
    p: &mut Payload<'_, R>,
    [frame, function, file, lineno]: &mut [Delta; 4],
) -> Result<NamedFrame, Problem> {
    let frame = narrow(frame.value(p.number()?))?;
    let count = p.number()?;
    let mut places = Vec::new();
    // The count is untrusted and allocates nothing: each place takes at least 2 bytes.
    for _ in 0..count {
        let function = optional(function.value(p.number()?))?;
        let line = match optional(file.value(p.number()?))? {
            Some(file) => Some((file, narrow(lineno.value(p.number()?))?)),
            None => None,
        };
        places.push(Place { function, line });
    }
    Ok(NamedFrame { frame, places })
}

/// Columns of the steps of a history.
#[derive(Default)]
struct StepColumns {
    end: Delta,
    domains: BTreeMap<Domain, [Delta; DomainStep::COLUMNS]>,
    process: [Delta; ProcessStep::COLUMNS],
}

/// Most steps: those of ten years. A row of four bytes takes some 200 bytes in memory.
const MOST_STEPS: u64 = 1 << 18;
/// Most marks. A recorder keeps 2048.
const MOST_MARKS: u64 = 1 << 16;

fn bounded(index: u64, most: u64, what: &'static str) -> Result<(), Problem> {
    if index < most { Ok(()) } else { Err(what.into()) }
}

/// Most domains of a step. A handmade file could make each step expensive.
const MOST_DOMAINS: u64 = 1024;

fn step<R: Read>(p: &mut Payload<'_, R>, columns: &mut StepColumns, stacks: usize) -> Result<Step, Problem> {
    let end = columns.end.value(p.number()?);
    let mut domains = Vec::new();
    let count = p.number()?;
    if count > MOST_DOMAINS {
        return Err("has more than 1024 domains".into());
    }
    for _ in 0..count {
        let domain = domain(p.number()?)?;
        domains.push(DomainStep::of(domain, values(p, columns.domains.entry(domain).or_default())?));
    }
    let process = if p.flag()? { Some(ProcessStep::of(values(p, &mut columns.process)?)) } else { None };
    Ok(Step { end, domains, process, changes: Changes::check(p.bytes()?, stacks)? })
}

fn values<R: Read, const N: usize>(p: &mut Payload<'_, R>, columns: &mut [Delta; N]) -> Result<[u64; N], Problem> {
    let mut values = [0; N];
    for (value, column) in values.iter_mut().zip(columns) {
        *value = column.value(p.number()?);
    }
    Ok(values)
}

fn thread_totals<R: Read>(p: &mut Payload<'_, R>, [code, thread]: &mut [Delta; 2]) -> Result<ThreadTotals, Problem> {
    Ok(ThreadTotals {
        domain: domain(code.value(p.number()?))?,
        thread: narrow(thread.value(p.number()?))?,
        peak_size: p.number()?,
        peak_count: p.number()?,
        total_size: p.number()?,
        total_count: p.number()?,
    })
}
