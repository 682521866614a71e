//! The processes of a tree. Processes of one program under one parent are a row.

use super::fit;
use super::layout::{Layout, Role};
use super::table::{Column, Table};
use super::unit::Unit;
use super::words::{about, end, estimated_count, estimated_size};
use crate::input::copies::Part;
use crate::input::moment::{At, totals};
use crate::query::estimate::of_domain;
use crate::query::report::Report;
use heapline_shared_format::snapshot::{Birth, Domain, Snapshot};
use heapline_shared_format::text::{counted, printable, size};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

/// Processes of one program, all forked or all started, with a common parent or with parents in a
/// common row.
struct Row<'s> {
    members: Vec<&'s Snapshot>,
    depth: usize,
    /// Rows of the children.
    children: Vec<usize>,
    /// Bytes of the members and of all processes below.
    weight: u64,
}

/// Writes the processes as a tree, those with the most memory first. A verbose report has a row for
/// each process.
pub(super) fn processes(report: &Report<'_>, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    let rows = rows(report, layout.is_verbose);
    let most = if report.request.limit == 0 { rows.len() } else { report.request.limit };
    let (shown, others) = rows.split_at(most.min(rows.len()));
    match layout.width {
        None => shown.iter().try_for_each(|row| line(report, row, out))?,
        Some(width) => table(report, shown, layout, width, out)?,
    }
    if others.is_empty() {
        return Ok(());
    }
    let count = others.iter().map(|row| row.members.len() as u64).sum();
    let verb = if count == 1 { "is" } else { "are" };
    let text = format!("  {} {verb} not shown: --limit 0 shows all", counted(count, "more process"));
    layout.say(Role::Quiet, &text, out)
}

/// Returns the rows, each behind the row of its parents. The heaviest of siblings comes first.
fn rows<'s>(report: &Report<'s>, is_each: bool) -> Vec<Row<'s>> {
    let weight = |snapshot| {
        let sums = totals(snapshot, report.view.domain);
        if report.view.at.is_now() { sums.current } else { sums.peak }
    };
    let mut rows: Vec<Row<'s>> = Vec::new();
    let mut known = HashMap::new();
    // Rows of the process before, and of its parents.
    let mut path: Vec<usize> = Vec::new();
    let mut roots = Vec::new();
    for process in report.subject.processes() {
        path.truncate(process.depth);
        let (parent, snapshot) = (path.last().copied(), process.snapshot);
        let is_forked = snapshot.origin.as_ref().map(|origin| origin.birth == Birth::Fork);
        let key = (parent, is_forked, program(snapshot));
        let row = known.get(&key).copied().filter(|_| !is_each).unwrap_or_else(|| {
            let row = rows.len();
            rows.push(Row { members: Vec::new(), depth: path.len(), children: Vec::new(), weight: 0 });
            match parent {
                Some(parent) => rows[parent].children.push(row),
                None => roots.push(row),
            }
            row
        });
        known.insert(key, row);
        rows[row].members.push(snapshot);
        path.push(row);
        let weight = weight(snapshot);
        for &above in &path {
            rows[above].weight = rows[above].weight.saturating_add(weight);
        }
    }
    // Depth first. The sort is stable, so rows of equal weight keep their order.
    let heaviest_last = |mut siblings: Vec<usize>| {
        siblings.reverse();
        siblings.sort_by_key(|&row| rows[row].weight);
        siblings
    };
    let mut order = Vec::with_capacity(rows.len());
    let mut waiting = heaviest_last(roots);
    while let Some(row) = waiting.pop() {
        order.push(row);
        waiting.extend(heaviest_last(rows[row].children.clone()));
    }
    let mut rows: Vec<Option<Row<'s>>> = rows.into_iter().map(Some).collect();
    order.into_iter().filter_map(|row| rows[row].take()).collect()
}

/// Returns the path of the program; the first word of the command if unknown.
fn program(snapshot: &Snapshot) -> &str {
    match &snapshot.meta.executable {
        path if path.is_empty() => snapshot.meta.command.split(' ').next().unwrap_or(""),
        path => path,
    }
}

/// Figures of a row in the layer of the view.
struct Figures {
    current: u64,
    blocks: u64,
    /// Sum of the peaks.
    peak: u64,
    /// The greatest peak, and its process.
    greatest: (u64, u32),
    /// Median of the peaks; the greater of the two in the middle.
    median: u64,
    /// Least and greatest number of inherited blocks, where known.
    inherited: Option<(u64, u64)>,
    /// Whether some of the sizes are estimates.
    is_estimate: bool,
}

impl Row<'_> {
    fn figures(&self, domain: Domain) -> Figures {
        let sums = self.members.iter().map(|snapshot| totals(snapshot, domain));
        let add = |sum: u64, more: u64| sum.saturating_add(more);
        let mut peaks: Vec<(u64, u32)> =
            sums.clone().zip(&self.members).map(|(sums, snapshot)| (sums.peak, snapshot.meta.pid)).collect();
        peaks.sort_unstable();
        let inherited = self.members.iter().filter_map(|snapshot| inherited(snapshot, domain));
        let parts = self.members.iter().map(|snapshot| Part::alone(snapshot));
        let is_estimate = |&at: &At| of_domain(parts.clone(), domain, at).is_estimate();
        Figures {
            current: sums.clone().map(|sums| sums.current).fold(0, add),
            blocks: sums.clone().map(|sums| sums.blocks).fold(0, add),
            peak: sums.map(|sums| sums.peak).fold(0, add),
            greatest: peaks.last().copied().unwrap_or_default(),
            median: peaks.get(peaks.len() / 2).map_or(0, |peak| peak.0),
            inherited: inherited.clone().min().zip(inherited.max()),
            is_estimate: [At::Live, At::Peak].iter().any(is_estimate),
        }
    }

    /// Returns the only member; none if the row has several.
    fn alone(&self) -> Option<&Snapshot> {
        match self.members[..] {
            [snapshot] => Some(snapshot),
            _ => None,
        }
    }

    /// Formats the command, or the name of the program if the commands differ.
    fn command(&self) -> String {
        let first = self.members[0];
        let is_common = self.members.iter().all(|other| other.meta.command == first.meta.command);
        let name = || program(first).rsplit('/').next().unwrap_or_default();
        printable(if is_common { &first.meta.command } else { name() }).into_owned()
    }

    /// Formats how the members ended: the most frequent end first.
    fn ends(&self) -> String {
        let mut ends: BTreeMap<String, u64> = BTreeMap::new();
        self.members.iter().for_each(|snapshot| *ends.entry(end(&snapshot.meta)).or_default() += 1);
        let mut ends: Vec<(String, u64)> = ends.into_iter().collect();
        ends.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        match &ends[..] {
            [(end, _)] => end.clone(),
            ends => ends.iter().map(|(end, count)| format!("{count} {end}")).collect::<Vec<_>>().join(", "),
        }
    }

    /// Formats how the members came to be, and what they inherited.
    fn birth(&self, inherited: Option<(u64, u64)>, noun: &str) -> String {
        let birth = match self.members[0].origin.as_ref().map(|origin| origin.birth) {
            None => return String::new(),
            Some(Birth::Exec) => return ", started".to_owned(),
            Some(Birth::Fork) => ", forked",
        };
        match inherited {
            None => birth.to_owned(),
            Some((least, most)) if least == most => format!("{birth} with {} inherited", counted(most, noun)),
            Some((least, most)) => format!("{birth} with {least} to {} inherited", counted(most, noun)),
        }
    }
}

/// Number of blocks that a forked process had from the beginning; none if not forked, or unknown.
fn inherited(snapshot: &Snapshot, domain: Domain) -> Option<u64> {
    let inherited = snapshot.origin.as_ref()?.inherited.as_ref()?;
    Some(inherited.get(&domain.to_string()).copied().unwrap_or(0))
}

/// Writes a row for scripts.
fn line(report: &Report<'_>, row: &Row<'_>, out: &mut dyn Write) -> io::Result<()> {
    let domain = report.view.domain;
    let Figures { current, blocks, peak, greatest, median, inherited, is_estimate } = row.figures(domain);
    let indent = 2 + 2 * row.depth.min(20);
    let (birth, ends) = (row.birth(inherited, domain.noun()), row.ends());
    match row.alone() {
        Some(snapshot) => {
            let interval = |at| of_domain(std::iter::once(Part::alone(snapshot)), domain, at);
            writeln!(
                out,
                "{:indent$}{} {}: current {} in {}, peak {}{birth}, {ends}",
                "",
                snapshot.meta.pid,
                fit::command(&row.command(), MOST_OF_COMMAND),
                estimated_size(current, interval(At::Live).size_interval(current)),
                estimated_count(blocks, domain.noun(), interval(At::Live).count_interval()),
                estimated_size(peak, interval(At::Peak).size_interval(peak)),
            )
        }
        None => {
            let about = about(is_estimate);
            writeln!(
                out,
                "{:indent$}{} x {}: current {about}{} in {about}{}, peaks together {about}{}, the greatest {about}{} \
                 (process {}), the median {about}{}{birth}, {ends}",
                "",
                row.members.len(),
                fit::command(&row.command(), MOST_OF_COMMAND),
                size(current),
                counted(blocks, domain.noun()),
                size(peak),
                size(greatest.0),
                greatest.1,
                size(median),
            )
        }
    }
}

/// Heading of the number of inherited blocks.
const INHERITED: &str = "inherited";

/// Widest command in a row for scripts.
const MOST_OF_COMMAND: usize = 63;

/// Writes the rows for a terminal.
fn table(report: &Report<'_>, rows: &[Row<'_>], layout: Layout, width: usize, out: &mut dyn Write) -> io::Result<()> {
    let domain = report.view.domain;
    let figures: Vec<Figures> = rows.iter().map(|row| row.figures(domain)).collect();
    let unit = Unit::of(figures.iter().map(|row| row.peak.max(row.current)).max().unwrap_or(0));
    let cells = |cell: &dyn Fn(&Row<'_>, &Figures) -> String| -> Vec<String> {
        rows.iter().zip(&figures).map(|(row, figures)| cell(row, figures)).collect()
    };
    let marked = |figures: &Figures, bytes| format!("{}{}", about(figures.is_estimate), unit.format(bytes));
    let of_several = |row: &Row<'_>, figures: &Figures, bytes| match row.alone() {
        Some(_) => String::new(),
        None => marked(figures, bytes),
    };
    let columns = vec![
        Column::new(
            "process",
            Role::Quiet,
            9,
            cells(&|row, _| match row.alone() {
                Some(snapshot) => snapshot.meta.pid.to_string(),
                None => format!("{} x", row.members.len()),
            }),
        ),
        Column::new(
            "live",
            Role::Size,
            if report.view.at.is_now() { 8 } else { 5 },
            cells(&|_, figures| marked(figures, figures.current)),
        ),
        Column::new("peak", Role::Size, 7, cells(&|_, figures| marked(figures, figures.peak))),
        Column::new("greatest", Role::Plain, 4, cells(&|row, figures| of_several(row, figures, figures.greatest.0))),
        Column::new("median", Role::Plain, 3, cells(&|row, figures| of_several(row, figures, figures.median))),
        Column::new(
            INHERITED,
            Role::Plain,
            6,
            cells(&|_, figures| match figures.inherited {
                None => String::new(),
                Some((least, most)) if least == most => most.to_string(),
                Some((least, most)) => format!("{least} to {most}"),
            }),
        ),
    ];
    let table = Table::new(layout, width, columns);
    let inherited = if table.has(INHERITED) { format!(", inherited {}s", domain.noun()) } else { String::new() };
    layout.say(Role::Quiet, &format!("Processes: {domain} memory in {}{inherited}", unit.name()), out)?;
    table.head("program", out)?;
    for (index, row) in rows.iter().enumerate() {
        let indent = (2 * row.depth).min(table.room / 2);
        let end = match row.ends() {
            end if ["exited", "exited with status 0"].contains(&end.as_str()) => String::new(),
            end => format!(" ({end})"),
        };
        let room = layout.most(table.room - indent);
        let command = row.command();
        let short = fit::command(&command, room.saturating_sub(fit::columns(&end)).max(room / 2));
        let text = format!("{short}{end}");
        table.row(index, &format!("{:indent$}{}", "", layout.paint(Role::Place, fit::beginning(&text, room))), out)?;
    }
    Ok(())
}
