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

use anyhow::Error;
use clap::Parser;
use heapline_shared_format::text::{counted, printable, size};
use heapline_tools::cli::{Arguments, Config, Format, WantedPast, one_line};
use heapline_tools::debuginfod::Client;
use heapline_tools::export::{folded, page};
use heapline_tools::glob::Glob;
use heapline_tools::input::load::load;
use heapline_tools::input::moment::{At, totals};
use heapline_tools::input::past::{NoPast, Past};
use heapline_tools::input::tree::Subject;
use heapline_tools::output::{Output, WriteError};
use heapline_tools::query::report::Report;
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
    let arguments = match Arguments::try_parse() {
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
        Ok(notes) => {
            // Some notes name themselves.
            let text = |note: &String| format!("note: {}", note.strip_prefix("Note: ").unwrap_or(note));
            notes.iter().for_each(|note| say(&text(note)));
            ExitCode::SUCCESS
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

/// Makes and writes the report. Returns notes for standard error.
fn run(mut config: Config) -> Result<Vec<String>, Failure> {
    let client = config.debuginfod.then(|| Client::from_environment(say)).transpose().map_err(Failure::Usage)?;
    if config.settings {
        config.request.skip.extend(Settings::of_user()?.skip.iter().map(|pattern| Glob::new(pattern)));
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
    let (mut subject, mut old, mut since) = (subjects.0, subjects.1, None);
    if config.format == Format::Html {
        let wanted = config.past.as_ref().map(|wanted| past(&subject, wanted)).transpose()?;
        let (at, since) =
            wanted.map_or((None, None), |(now, since)| (Some(now.instant), since.map(|since| since.instant)));
        let report = Report::new(config.request, &subject, old.as_ref(), &mut symbolizer)?;
        let sources = match config.source {
            _ if config.no_source => None,
            Some(glob) => Some(Sources::matching(glob)),
            None => std::env::current_dir().ok().and_then(|folder| Sources::below(&folder)),
        };
        let page = page::Page { report: &report, old: old.as_ref(), at, since };
        output.write(|out| page.write(sources, &mut symbolizer, out))?;
        return Ok(notes(&report, config.format));
    }
    let is_of_leaks = config.past == Some(WantedPast::Leaks);
    let history = if is_of_leaks { subject.first().history.clone() } else { None };
    if let Some(wanted) = config.past {
        let (now, before) = past(&subject, &wanted)?;
        config.request.at = now.moment();
        subject = now.subject;
        since = before.as_ref().map(|before| before.instant);
        old = before.map(|before| before.subject);
    }
    let mut report = Report::new(config.request, &subject, old.as_ref(), &mut symbolizer)?;
    report.since = since;
    history.iter().for_each(|history| report.keep_growing(history));
    let mut sources = config.source.map(Sources::matching);
    let layout = Layout { width: output.columns(), has_colours: output.has_colours(), is_verbose: config.is_verbose };
    output.write(|out| match config.format {
        Format::Text => text::write(&report, sources.as_mut(), layout, out),
        Format::Json => json::write(&report, sources.as_mut(), out),
        Format::Csv => csv::write(&report, out),
        Format::Folded => folded::write(&report, out),
        Format::Html => unreachable!("written above"),
    })?;
    Ok(notes(&report, config.format))
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
    let has_place = matches!(format, Format::Text | Format::Html);
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
