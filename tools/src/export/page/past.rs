//! The histories of all processes, as columns.

use super::column::Columns;
use super::rows::RowOfStack;
use heapline_shared_format::snapshot::history::{Change, Mark as Event, ProcessStep};
use heapline_shared_format::snapshot::{Domain, History};
use serde::Serialize;

/// What the page is told of a history besides the columns.
#[derive(Serialize)]
pub struct Told {
    /// Number of the process.
    process: usize,
    /// Milliseconds since 1970, UTC.
    begun: u64,
    /// Seconds.
    utc_offset: i32,
    steps: usize,
    /// Domains with figures, in the order of the columns.
    domains: Vec<u64>,
    marks: Vec<Mark>,
}

#[derive(Serialize)]
struct Mark {
    at: u64,
    kind: String,
    text: String,
}

/// A history, and the rows of its changes.
pub struct Past<'s> {
    /// Number of the process.
    pub process: usize,
    /// The history.
    pub history: &'s History,
    /// Rows of the stacks.
    pub rows: RowOfStack,
}

/// Most marks of a page. A program can write any number of marks.
const MOST_MARKS: usize = 2000;

/// Writes the histories. `places` has the place of each row in the columns.
pub fn write(
    columns: &mut Columns,
    pasts: &[Past<'_>],
    places: &[u32],
    domain_number: &dyn Fn(Domain) -> u64,
) -> Vec<Told> {
    let steps = || pasts.iter().flat_map(|past| &past.history.steps);
    columns.steps("step.end", steps().map(|step| step.end));
    let gauge = |of: fn(&ProcessStep) -> u64| steps().map(move |step| step.process.as_ref().map_or(0, of));
    columns.steps("step.resident", gauge(|process| process.resident));
    columns.steps("step.swap", gauge(|process| process.swap));
    columns.steps("step.threads", gauge(|process| process.threads));
    // 0 for none.
    columns.steps("step.limit", gauge(|process| process.cgroup_limit.map_or(0, |limit| limit.saturating_add(1))));

    let domains_of = |past: &Past<'_>| {
        let mut domains: Vec<Domain> =
            past.history.steps.iter().flat_map(|step| &step.domains).map(|row| row.domain).collect();
        domains.sort_unstable();
        domains.dedup();
        domains
    };
    // All steps of a domain stand together: neighbours are alike.
    let sums: Vec<_> = pasts
        .iter()
        .flat_map(|past| {
            let of_domain = |domain| past.history.steps.iter().map(move |step| step.domain(domain).copied());
            domains_of(past).into_iter().flat_map(of_domain)
        })
        .collect();
    columns.steps("sum.current", sums.iter().map(|sum| sum.map_or(0, |sum| sum.current)));
    columns.steps("sum.greatest", sums.iter().map(|sum| sum.map_or(0, |sum| sum.greatest)));
    columns.steps("sum.blocks", sums.iter().map(|sum| sum.map_or(0, |sum| sum.blocks)));
    columns.steps("sum.allocated", sums.iter().map(|sum| sum.map_or(0, |sum| sum.allocated_bytes)));
    columns.steps("sum.allocs", sums.iter().map(|sum| sum.map_or(0, |sum| sum.allocs)));

    let (mut counts, mut changes) = (Vec::new(), Vec::new());
    for past in pasts {
        for step in &past.history.steps {
            let place = |change: Change| Some((places[*past.rows.get(&change.key())? as usize], change));
            let mut of_step: Vec<_> = step.changes.iter().filter_map(place).collect();
            of_step.sort_by_key(|&(row, _)| row);
            // Stacks with equal frames have a row in common.
            of_step.dedup_by(|(row, later), (first, sum)| {
                *row == *first && {
                    sum.add(later);
                    true
                }
            });
            counts.push(of_step.len() as u64);
            changes.extend(of_step);
        }
    }
    columns.plain("step.changes", counts);
    columns.steps("change.row", changes.iter().map(|&(row, _)| row.into()));
    columns.signed("change.size", changes.iter().map(|(_, change)| change.size));
    columns.signed("change.count", changes.iter().map(|(_, change)| change.count));
    columns.plain("change.allocated", changes.iter().map(|(_, change)| change.allocated_bytes));
    columns.plain("change.allocs", changes.iter().map(|(_, change)| change.allocs));

    let told = |past: &Past<'_>| Told {
        process: past.process,
        begun: past.history.begun,
        utc_offset: past.history.utc_offset,
        steps: past.history.steps.len(),
        domains: domains_of(past).into_iter().map(domain_number).collect(),
        marks: past.history.marks.iter().rev().take(MOST_MARKS).rev().map(mark).collect(),
    };
    pasts.iter().map(told).collect()
}

fn mark(mark: &Event) -> Mark {
    Mark { at: mark.at, kind: super::shown(&mark.kind), text: super::shown(&mark.text) }
}
