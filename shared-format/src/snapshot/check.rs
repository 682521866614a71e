//! Rules between the tables of a snapshot: every index is in range, a parent stands before each
//! child, a range does not end before the start.
//!
//! - The writer checks before writing, so every written snapshot can be read.
//! - The reader checks after each table, so users of a snapshot may index without a check.

use super::domain::Tables;
use super::history::History;
use super::model::{
    Domain, DomainTotals, Draws, Frame, LiveGroup, Mixed, Module, Names, Node, Sampled, Snapshot, Stack, StackTotals,
    ThreadCalls, ThreadTotals,
};
use super::section;
use std::collections::HashSet;

/// A row that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadRow {
    pub(super) row: u64,
    pub(super) what: &'static str,
}

/// Checks every table of `snapshot`. An error names the section of the first bad row.
pub(super) fn all(snapshot: &Snapshot) -> Result<(), ([u8; 4], BadRow)> {
    let in_section = |tag| move |bad| (tag, bad);
    let s = snapshot;
    modules(&s.modules).map_err(in_section(section::MODULES))?;
    frames(&s.frames, s.modules.len(), s.codes.len()).map_err(in_section(section::FRAMES))?;
    by_frame_pointer(&s.by_frame_pointer, s.frames.len()).map_err(in_section(section::WALKED))?;
    nodes(&s.nodes, s.frames.len()).map_err(in_section(section::NODES))?;
    stacks(&s.stacks, s.nodes.len()).map_err(in_section(section::STACKS))?;
    mixed(&s.mixed, s.stacks.len()).map_err(in_section(section::MIXED))?;
    sampled(&s.sampled, s.stacks.len()).map_err(in_section(section::SAMPLED))?;
    calls(&s.calls, s.threads.len()).map_err(in_section(section::SAMPLED))?;
    domains(&s.domains).map_err(in_section(section::DOMAINS))?;
    live(&s.live, s.stacks.len(), s.threads.len()).map_err(in_section(section::LIVE))?;
    totals(&s.totals, s.stacks.len()).map_err(in_section(section::TOTALS))?;
    thread_totals(&s.thread_totals, s.threads.len()).map_err(in_section(section::THREAD_TOTALS))?;
    s.draws.as_ref().map_or(Ok(()), |rows| draws(rows, s.live.len())).map_err(in_section(section::DRAWS))?;
    names(&s.names, s.modules.len(), s.frames.len()).map_err(in_section(section::NAMES))?;
    s.history.as_ref().map_or(Ok(()), history).map_err(in_section(section::HISTORY))?;
    in_order_of_tables(&s.domains, |row| row.domain).map_err(in_section(section::DOMAINS))?;
    in_order_of_tables(&s.live, |row| row.domain).map_err(in_section(section::LIVE))?;
    in_order_of_tables(&s.totals, |row| row.domain).map_err(in_section(section::TOTALS))
}

/// Checks that rows stand in the order of the tables that hold their domains.
fn in_order_of_tables<T>(rows: &[T], domain: impl Fn(&T) -> Domain) -> Result<(), BadRow> {
    let stray = rows.windows(2).position(|pair| domain(&pair[1]).tables() < domain(&pair[0]).tables());
    stray.map_or(Ok(()), |row| Err(BadRow { row: row as u64 + 1, what: "stands behind rows of later domains" }))
}

/// Checks that all rows belong to these tables.
pub(super) fn all_of<T>(tables: Tables, rows: &[T], domain: impl Fn(&T) -> Domain) -> Result<(), BadRow> {
    each(rows, |_, row| if domain(row).tables() == tables { Ok(()) } else { Err("names a domain of other tables") })
}

pub(super) fn modules(rows: &[Module]) -> Result<(), BadRow> {
    each(rows, |_, row| if row.start > row.end { Err("ends before it starts") } else { Ok(()) })
}

pub(super) fn frames(rows: &[Frame], modules: usize, codes: usize) -> Result<(), BadRow> {
    each(rows, |_, row| {
        optional(row.module, modules, "names a module that is not there")?;
        optional(row.as_python().map(|(code, _)| code), codes, "names a code object that is not there")
    })
}

pub(super) fn by_frame_pointer(rows: &[u32], frames: usize) -> Result<(), BadRow> {
    each(rows, |index, &row| {
        within(row, frames, "names a frame that is not there")?;
        rising(index, rows, |&row| row)
    })
}

/// Checks parents, frames and depth. No traceback is deeper than 65535 frames: with chains of any
/// length, a small file could take unlimited time.
pub(super) fn nodes(rows: &[Node], frames: usize) -> Result<(), BadRow> {
    let mut depths: Vec<u16> = Vec::with_capacity(rows.len());
    each(rows, |index, row| {
        optional(row.parent, index, "names a parent that does not stand before it")?;
        within(row.frame, frames, "names a frame that is not there")?;
        let above = row.parent.map_or(0, |parent| depths[parent as usize]);
        depths.push(above.checked_add(1).ok_or("is deeper than 65535 frames")?);
        Ok(())
    })
}

pub(super) fn stacks(rows: &[Stack], nodes: usize) -> Result<(), BadRow> {
    each(rows, |_, row| optional(row.leaf, nodes, "names a node that is not there"))
}

pub(super) fn mixed(rows: &[Mixed], stacks: usize) -> Result<(), BadRow> {
    each(rows, |index, row| {
        within(row.stack, stacks, "names a stack that is not there")?;
        within(row.python, stacks, "names a stack that is not there")?;
        rising(index, rows, |row| row.stack)
    })
}

pub(super) fn sampled(rows: &[Sampled], stacks: usize) -> Result<(), BadRow> {
    each(rows, |index, row| {
        within(row.stack, stacks, "names a stack that is not there")?;
        rising(index, rows, |row| row.stack)
    })
}

pub(super) fn calls(rows: &[ThreadCalls], threads: usize) -> Result<(), BadRow> {
    each(rows, |_, row| within(row.thread, threads, "names a thread that is not there"))
}

pub(super) fn domains(rows: &[DomainTotals]) -> Result<(), BadRow> {
    let mut seen = HashSet::new();
    each(rows, |_, row| if seen.insert(row.domain) { Ok(()) } else { Err("names a domain a second time") })
}

pub(super) fn live(rows: &[LiveGroup], stacks: usize, threads: usize) -> Result<(), BadRow> {
    each(rows, |_, row| {
        within(row.stack, stacks, "names a stack that is not there")?;
        within(row.thread, threads, "names a thread that is not there")
    })
}

pub(super) fn totals(rows: &[StackTotals], stacks: usize) -> Result<(), BadRow> {
    each(rows, |_, row| within(row.stack, stacks, "names a stack that is not there"))
}

/// Checks threads and order. The order allows a single row for each thread and domain.
pub(super) fn thread_totals(rows: &[ThreadTotals], threads: usize) -> Result<(), BadRow> {
    each(rows, |index, row| {
        within(row.thread, threads, "names a thread that is not there")?;
        rising(index, rows, |row| (row.domain.code(), row.thread))
    })
}

pub(super) fn draws(draws: &Draws, live: usize) -> Result<(), BadRow> {
    each(&draws.ancestors, |index, row| in_order(index, &draws.ancestors, row.end, |row| row.end))?;
    each(&draws.shared, |index, row| {
        within(row.live, live, "names a row of live blocks that is not there")?;
        in_order(index, &draws.shared, row.live, |row| row.live)
    })
}

/// Most functions at an address. A handmade file could make each node of the tree as expensive as
/// a deep traceback.
const DEEPEST_INLINE: usize = 255;

pub(super) fn names(names: &Names, modules: usize, frames: usize) -> Result<(), BadRow> {
    each(&names.modules, |index, row| {
        within(row.module, modules, "names a module that is not there")?;
        rising(index, &names.modules, |row| row.module)
    })?;
    each(&names.frames, |index, row| {
        within(row.frame, frames, "names a frame that is not there")?;
        rising(index, &names.frames, |row| row.frame)?;
        if row.places.len() > DEEPEST_INLINE {
            return Err("has more than 255 functions");
        }
        row.places.iter().try_for_each(|place| {
            optional(place.function, names.texts.len(), "names a text that is not there")?;
            optional(place.line.map(|(file, _)| file), names.texts.len(), "names a text that is not there")
        })
    })
}

/// Checks the order of steps, domains and marks. The changes of stacks are checked where the bytes
/// are read ([`super::history::Changes`]).
pub(super) fn history(history: &History) -> Result<(), BadRow> {
    each(&history.steps, |index, row| {
        rising(index, &history.steps, |row| row.end)?;
        let is_sorted = row.domains.is_sorted_by(|one, other| one.domain < other.domain);
        if is_sorted { Ok(()) } else { Err("has domains in another order") }
    })?;
    let in_order = history.marks.is_sorted_by_key(|mark| mark.at);
    if in_order {
        Ok(())
    } else {
        Err(BadRow { row: history.steps.len() as u64, what: "is before marks in another order" })
    }
}

fn in_order<T>(index: usize, rows: &[T], number: u32, of: impl Fn(&T) -> u32) -> Result<(), &'static str> {
    let is_next = index == 0 || of(&rows[index - 1]) <= number;
    if is_next { Ok(()) } else { Err("is not behind the row before it") }
}

fn each<T>(rows: &[T], mut rule: impl FnMut(usize, &T) -> Result<(), &'static str>) -> Result<(), BadRow> {
    for (index, row) in rows.iter().enumerate() {
        rule(index, row).map_err(|what| BadRow { row: index as u64, what })?;
    }
    Ok(())
}

fn rising<T, K: Ord>(index: usize, rows: &[T], key: impl Fn(&T) -> K) -> Result<(), &'static str> {
    let is_next = index == 0 || key(&rows[index - 1]) < key(&rows[index]);
    if is_next { Ok(()) } else { Err("is not behind the row before it") }
}

fn within(index: u32, len: usize, what: &'static str) -> Result<(), &'static str> {
    if (index as usize) < len { Ok(()) } else { Err(what) }
}

fn optional(index: Option<u32>, len: usize, what: &'static str) -> Result<(), &'static str> {
    index.map_or(Ok(()), |index| within(index, len, what))
}
