//! `report`: statistics of a snapshot, offline.
//!
//! A thin program over the library. Only this file turns results into an exit status and lines on
//! standard error.
//!
//! | Status | Meaning |
//! | --- | --- |
//! | 0 | done, or standard output is a closed pipe |
//! | 1 | any other failure |
//! | 2 | wrong usage |
//! | 3 | the memory in view has grown by more than `--fail-above` |

use anyhow::Error;
use heapline_shared_format::text::{counted, format_size, printable, size};
use heapline_tools::cli::{Arguments, Config, Format, WantedPast, one_line};
use heapline_tools::debuginfod::Client;
use heapline_tools::export::{folded, massif, page};
use heapline_tools::glob::Glob;
use heapline_tools::input::ages::{self, of_age};
use heapline_tools::input::load::load;
use heapline_tools::input::moment::{At, totals};
use heapline_tools::input::past::{NoPast, Past, history_of};
use heapline_tools::input::tree::Subject;
use heapline_tools::output::{Output, WriteError};
use heapline_tools::query::overview::Overview;
use heapline_tools::query::report::{Report, Request};
use heapline_tools::query::suppress::Suppressions;
use heapline_tools::render::text::{Layout, blocks_of};
use heapline_tools::render::{Sources, csv, json, text};
use heapline_tools::settings::Settings;
use heapline_tools::symbols::{Symbolizer, default_cache_dir};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

enum Failure {
    Usage(String),
    Other(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Other(error.into())
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::of(std::env::args_os()) {
        Ok(arguments) => Ok(arguments),
        Err(help) if !help.use_stderr() => {
            // If even the help cannot be printed, no message can be.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(one_line(&error)),
    };
    let config = arguments.and_then(Arguments::into_config).map_err(Failure::Usage);
    match config.and_then(run) {
        Ok(Done { notes, excess }) => {
            // Some notes name themselves.
            let text = |note: &String| format!("note: {}", note.strip_prefix("Note: ").unwrap_or(note));
            notes.iter().for_each(|note| say(&text(note)));
            excess.iter().for_each(|text| say(text));
            if excess.is_some() { ExitCode::from(3) } else { ExitCode::SUCCESS }
        }
        Err(Failure::Other(error)) if error.downcast_ref().is_some_and(WriteError::is_closed_pipe) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            say(&text);
            ExitCode::from(2)
        }
        Err(Failure::Other(error)) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// What there is to say when a report is written.
struct Done {
    /// Notes for standard error.
    notes: Vec<String>,
    /// A sentence on growth above the bound; none below.
    excess: Option<String>,
}

/// Makes and writes the report.
fn run(mut config: Config) -> Result<Done, Failure> {
    let client = config.debuginfod.then(|| Client::from_environment(say)).transpose().map_err(Failure::Usage)?;
    if config.settings {
        config.request.skip.extend(Settings::of_user()?.skip.iter().map(|pattern| Glob::new(pattern)));
    }
    if let Some(path) = &config.suppressions {
        config.request.suppressions = Suppressions::read(path)?;
    }
    let output = Output::open(config.output.as_deref())?;
    let subject = |path: &Path| match config.is_tree {
        true => Subject::load_tree(path).map_err(Error::from),
        false => load(path).map(Subject::process).map_err(Error::from),
    };
    let subjects = (subject(&config.snapshot)?, config.old.as_deref().map(subject).transpose()?);
    let mut symbolizer = Symbolizer::new(config.debug_dirs, default_cache_dir());
    if let Some(client) = client {
        symbolizer = symbolizer.with_fetch(Box::new(client));
    }
    let layout = Layout { width: output.columns(), has_colours: output.has_colours(), is_verbose: config.is_verbose };
    let (mut subject, mut old, mut since, mut survivors) = (subjects.0, subjects.1, None, None);
    let mut answered = None;
    if let Some(wanted) = config.ages {
        let (part, answer) = of_age(&subject, wanted)?;
        (subject, answered) = (part, Some(answer));
        old = old.map(|old| of_age(&old, wanted)).transpose()?.map(|(old, _)| old);
    }
    if config.format == Format::Html {
        let wanted = config.past.as_ref().map(|wanted| past(&subject, wanted)).transpose()?;
        let report = Report::new(config.request.clone(), &subject, old.as_ref(), &mut symbolizer)?;
        let sources = match config.source {
            _ if config.no_source => None,
            Some(glob) => Some(Sources::matching(glob)),
            None => std::env::current_dir().ok().and_then(|folder| Sources::below(&folder)),
        };
        let at = wanted.as_ref().map(|(now, _)| now.instant);
        let since = wanted.as_ref().and_then(|(_, before)| Some(before.as_ref()?.instant));
        let page = page::Page { report: &report, old: old.as_ref(), at, since };
        output.write(|out| page.write(sources, &mut symbolizer, out))?;
        let excess = match (config.fail_above, &wanted) {
            (Some(most), Some((now, Some(before)))) => {
                let request = Request { at: now.moment(), ..config.request };
                excess(&Report::new(request, &now.subject, Some(&before.subject), &mut symbolizer)?, most)
            }
            (most, _) => most.and_then(|most| excess(&report, most)),
        };
        return Ok(Done { notes: notes(&report, config.format), excess });
    }
    if config.is_overview {
        let overview = Overview::of(&subject);
        let parts = overview.parts(&config.request, &subject, &mut symbolizer)?;
        output.write(|out| text::overview(&parts, &config.snapshot, layout, out))?;
        return Ok(Done { notes: notes(&parts.main, config.format), excess: None });
    }
    let is_of_leaks = config.past == Some(WantedPast::Leaks);
    let history = if is_of_leaks { subject.first().history.clone() } else { None };
    if is_of_leaks {
        survivors = ages::older_half(&subject);
    }
    if let Some(wanted) = config.past {
        let (now, before) = past(&subject, &wanted)?;
        config.request.at = now.moment();
        if let Some(before) = &before {
            survivors = ages::survivors(&subject, before.instant, now.instant);
        }
        subject = now.subject;
        since = before.as_ref().map(|before| before.instant);
        old = before.map(|before| before.subject);
    }
    let request = config.request.clone();
    let mut report = Report::new(config.request, &subject, old.as_ref(), &mut symbolizer)?;
    (report.since, report.ages) = (since, answered);
    if let Some(survivors) = &survivors {
        report.add_survivors(survivors, &mut symbolizer)?;
    }
    if config.churn {
        report.rank_by_churn()?;
    }
    history.iter().for_each(|history| report.keep_growing(history));
    let mut over_time = None;
    if config.format == Format::Massif {
        let peak = Request { at: At::Peak, ..request };
        over_time = Some((history_of(subject.first())?, Report::new(peak, &subject, None, &mut symbolizer)?));
    }
    let mut sources = config.source.map(Sources::matching);
    output.write(|out| match config.format {
        Format::Text => text::write(&report, sources.as_mut(), layout, out),
        Format::Json => json::write(&report, sources.as_mut(), out),
        Format::Csv => csv::write(&report, out),
        Format::Folded => folded::write(&report, out),
        Format::Html => unreachable!("written above"),
        Format::Massif => over_time.iter().try_for_each(|(history, peak)| massif::write(history, &report, peak, out)),
        Format::Markdown => text::markdown(&report, out),
    })?;
    let excess = config.fail_above.and_then(|most| excess(&report, most));
    Ok(Done { notes: notes(&report, config.format), excess })
}

/// Says that the memory in view has grown by more than a bound; none if it has not.
fn excess(report: &Report<'_>, most: u64) -> Option<String> {
    let growth = report.growth_in_view().filter(|&growth| growth > i128::from(most))?;
    let about = if report.total.estimate.is_estimate() { "about " } else { "" };
    let (grown, most) = (format_size(growth, false), size(most));
    Some(format!("{} has grown by {about}{grown}, more than the {most} of --fail-above", what(report)))
}

/// Returns the subject at the wanted time and, for a range, at its begin.
fn past(subject: &Subject, wanted: &WantedPast) -> Result<(Past, Option<Past>), NoPast> {
    match wanted {
        WantedPast::At(time) => Ok((Past::of(subject, time)?, None)),
        WantedPast::Leaks => Ok((Past::last(subject)?, None)),
        WantedPast::Range(since, until) => {
            let now = until.as_ref().map_or_else(|| Past::last(subject), |until| Past::of(subject, until))?;
            let before = Past::of(subject, since)?;
            before.must_be_before(&now)?;
            Ok((now, Some(before)))
        }
    }
}

fn notes(report: &Report<'_>, format: Format) -> Vec<String> {
    // Text and page have the notes in their heads. Other formats have no place for sentences.
    let has_place = matches!(format, Format::Text | Format::Html | Format::Markdown);
    let mut notes = if has_place { Vec::new() } else { text::concerns(report) };
    notes.extend(report.warnings.iter().cloned());
    if report.nothing_matched {
        notes.push(format!("the filters match nothing{}: no rows", unfiltered(report)));
    } else if report.rows.is_empty() && report.growth.is_some() {
        notes.push("nothing grows for sure in the second half of the history: no rows".to_owned());
    } else if report.rows.is_empty() && !report.has_no_records() {
        notes.push(format!("there are no blocks in domain {}: no {}", report.view.domain, what(report)));
    }
    notes
}

fn what(report: &Report<'_>) -> String {
    blocks_of(report.view, report.snapshot.meta.begun)
}

/// Names the memory that the filters matched against.
fn unfiltered(report: &Report<'_>) -> String {
    let (domain, at) = (report.view.domain, report.view.at);
    let sums = totals(report.snapshot, domain);
    let about = if report.is_sampled() && domain.is_sampled() { "~" } else { "" };
    let blocks = |count| counted(count, domain.noun());
    let amount = match at {
        At::Live | At::Instant(_) => {
            format!("{about}{} in {about}{}", size(sums.current), blocks(sums.blocks))
        }
        At::Peak => format!("{about}{}", size(sums.peak)),
        At::Total => format!("{} in {}", size(sums.allocated_bytes), blocks(sums.allocs)),
    };
    format!(" of {amount} ({})", what(report))
}

/// Writes a line to standard error. A closed standard error is no failure.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "report: {}", printable(text));
}
