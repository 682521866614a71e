//! The command line of `report`: the words as typed ([`Arguments`]) and their meaning ([`Config`]).

use crate::export::massif;
use crate::frames::Frames;
use crate::glob::Glob;
use crate::input::ages::Wanted;
use crate::input::moment::{At, Moment};
use crate::input::time::{Time, duration};
use crate::query::blame::Blame;
use crate::query::filter::{Filters, Pattern};
use crate::query::focus::Focus;
use crate::query::report::Request;
use crate::query::statistics::By;
use crate::query::template::Template;
use crate::symbols::DEBUG_DIR;
use clap::builder::PossibleValue;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use heapline_shared_format::snapshot::Domain;
use heapline_shared_format::text::parse_size;
use std::ffi::OsString;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  report app.snap.zst                      what it is of, its peak, and when
  report app.snap.zst --by lineno          memory live at the end, by line
  report app.snap.zst --at peak --source   memory live at the peak, with source
  report app.snap.zst --by traceback       the calls that led to the memory
  report app.snap.zst --at total --by function
                                           functions that allocate the most
  report app.snap.zst --domain mmap        memory mapped by the program itself
  report new.snap.zst --diff old.snap.zst  lines that grew
  report app.snap.zst --at 03:00           memory live at that time
  report app.snap.zst --since -1h          lines that grew in the last hour
  report app.snap.zst --leaks              lines that grow whatever the load
  report app.snap.zst --older-than 10m     lines with blocks from long ago
  report app.snap.zst --churn              lines whose blocks live shortly
  report app.snap.zst --focus parse        only memory of calls through parse
  report app.snap.zst --filter '*/parser/*' --format json
                                           a part of the program, for a script
  report app.snap.zst --at peak --format html -o peak.html
                                           a page for a browser
  report --tree app                        all processes of a run";

/// Words of the command line that choose nothing of what a report shows: an overview stays an
/// overview. The first word is the group of all arguments.
const NEUTRAL: [&str; 6] = ["Arguments", "snapshot", "output", "debug_dir", "debuginfod", "no_config"];

/// Statistics of a Heapline snapshot: who holds the memory, who held it at the peak, what changed
///
/// Without an option that chooses something, a report is an overview for a screen of 80 x 24.
#[derive(Debug, Parser)]
#[command(name = "report", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Arguments {
    /// Whether nothing was chosen, so that an overview is wanted.
    #[arg(skip)]
    is_plain: bool,
    /// Snapshot that the aggregator wrote
    #[arg(value_name = "SNAP", required_unless_present = "tree", conflicts_with = "tree")]
    snapshot: Option<PathBuf>,
    /// Sum up all processes with snapshots in this folder, and the first process beside the folder
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Show what changed since this older snapshot (with --tree: since this folder's processes)
    #[arg(long, value_name = "OLD")]
    diff: Option<PathBuf>,
    /// With --diff or --since: end with status 3 if the memory in view has grown by more (5M, say)
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    fail_above: Option<u64>,
    /// Group blocks by this (size and age are known of live blocks only) [default: lineno]
    #[arg(long, value_enum, value_name = "KEY")]
    by: Option<By>,
    /// With --by tree: begin with the blamed frames, and go to their callers
    #[arg(long)]
    inverted: bool,
    /// Blocks live at the snapshot (live), at the peak (peak), all since the start (total), or live
    /// at a time: 03:00, 2026-11-28T03:00 (with Z: UTC), -10m (before the snapshot), +90s (after
    /// the start), mark:NAME
    /// [default: live]
    #[arg(long, value_name = "MOMENT", allow_hyphen_values = true)]
    at: Option<Moment>,
    /// Show what changed since this time: grown, shrunk, new, gone
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with_all = ["diff", "at"])]
    since: Option<Time>,
    /// With --since: up to this time [default: the snapshot]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "since")]
    until: Option<Time>,
    /// Show what grows: a trend in the second half of the history, whatever the load
    #[arg(long, conflicts_with_all = ["at", "since", "diff", "tree", "cumulative"])]
    leaks: bool,
    /// Only live blocks that are at least so old: 500ms, 5s, 10m, 2h, 1d
    #[arg(long, value_name = "AGE", value_parser = age, conflicts_with_all = ["since", "leaks"])]
    older_than: Option<u64>,
    /// Only live blocks that are at most so old
    #[arg(long, value_name = "AGE", value_parser = age, conflicts_with_all = ["since", "leaks"])]
    younger_than: Option<u64>,
    /// Rank by churn: blocks that lived shortly, and allocations a second (implies --at total)
    #[arg(long, conflicts_with_all = ["since", "diff", "tree", "cumulative", "leaks", "older_than", "younger_than"])]
    churn: bool,
    /// With --leaks: leave out known leaks, by lines of leak:PATTERN as in LeakSanitizer's files
    #[arg(long, value_name = "FILE", requires = "leaks")]
    suppressions: Option<PathBuf>,
    /// Count a block for every frame of its traceback, not only for the blamed frame
    #[arg(long)]
    cumulative: bool,
    /// Only blocks whose blamed frame is in a file that matches (repeat it for more files)
    #[arg(long, value_name = "GLOB[:LINE]")]
    filter: Vec<Pattern>,
    /// No blocks whose blamed frame is in a file that matches (repeat it for more files)
    #[arg(long, value_name = "GLOB[:LINE]")]
    exclude: Vec<Pattern>,
    /// Let --filter and --exclude look at every frame
    #[arg(long)]
    all_frames: bool,
    /// Only stacks with a frame whose function, file or module matches: a part of the name, with *
    /// for any text, ^ for the begin and $ for the end (repeat it for alternatives)
    #[arg(long, value_name = "PATTERN")]
    focus: Vec<Template>,
    /// No stacks with a frame that matches (repeat it for more)
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<Template>,
    /// Begin each stack with the oldest frame that matches; no stacks without one (repeat it for
    /// alternatives)
    #[arg(long, value_name = "PATTERN")]
    trim: Vec<Template>,
    /// Layer: python, native, mmap, mmap:reserved, track:N or tracemalloc's number [default: python
    /// in a CPython process, else native]
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<Domain>,
    /// Group blocks under the first frame of the program's own code, or under the most recent frame
    /// [default: own for native and mmap, leaf for python and track:N]
    #[arg(long, value_enum, value_name = "WHOSE")]
    blame: Option<Blame>,
    /// Functions or files that match are nobody's own code (repeat it for more; not with --blame
    /// leaf)
    #[arg(long, value_name = "GLOB")]
    skip: Vec<String>,
    /// Leave the settings in heapline/report.toml (in $XDG_CONFIG_HOME or ~/.config) out
    #[arg(long)]
    no_config: bool,
    /// Show the source line of each frame whose file is there and matches [without a pattern: all
    /// files; html has lines of files below the current folder unless told otherwise]
    #[arg(long, value_name = "GLOB", num_args = 0..=1, require_equals = true, default_missing_value = "*")]
    source: Option<String>,
    /// With --format html: leave all source lines out of the page
    #[arg(long, conflicts_with = "source")]
    no_source: bool,
    /// Native tracebacks of a CPython process: mixed has Python's frames in the place of the
    /// interpreter's own
    #[arg(long, value_name = "WHICH", default_value = "mixed")]
    frames: Frames,
    /// Keep the frames of allocators, of the interpreter, of Heapline, and of what starts a program
    /// or a thread
    #[arg(long)]
    raw_frames: bool,
    /// In trees and flame graphs: show each cycle of a recursion once, with the number of passes
    #[arg(long)]
    fold_recursion: bool,
    /// Rows shown (by tree: ways), and programs of a tree of processes, 0 for all [default: 10; all
    /// in folded; not for html]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Show all facts of the snapshot, each process of a tree, and whole names on a terminal
    #[arg(short, long)]
    verbose: bool,
    /// Format of the output
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: Format,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Look for separate debug files here before /usr/lib/debug (repeat it for more directories)
    #[arg(long, value_name = "DIR")]
    debug_dir: Vec<PathBuf>,
    /// Download debug information that is not here from the servers in DEBUGINFOD_URLS
    #[arg(long)]
    debuginfod: bool,
}

/// Output format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs; versioned.
    Json,
    /// For spreadsheets.
    Csv,
    /// One line per traceback, for flame graphs.
    Folded,
    /// A page for a browser, in one file: flame graph, time, tables.
    Html,
    /// A table for a comment on a change.
    Markdown,
    /// Memory over time, for massif's viewers.
    Massif,
}

impl Format {
    /// Whether the format shows tracebacks and nothing else.
    fn is_by_traceback(self) -> bool {
        matches!(self, Format::Folded | Format::Html | Format::Massif)
    }
}

/// A time or a range of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WantedPast {
    /// The memory at a time.
    At(Time),
    /// The changes from a time to a later time, or to the snapshot.
    Range(Time, Option<Time>),
    /// What grows.
    Leaks,
}

/// Task of `report`. All options are compatible with each other.
#[derive(Debug)]
pub struct Config {
    /// The (new) snapshot, or the folder with the snapshots of a tree.
    pub snapshot: PathBuf,
    /// The old snapshot or folder, of the same kind as `snapshot`.
    pub old: Option<PathBuf>,
    /// Whether `snapshot` and `old` are trees.
    pub is_tree: bool,
    /// Request for the report, without the user's settings. The moment is live where `past` is set.
    pub request: Request,
    /// The time of the history that is asked for.
    pub past: Option<WantedPast>,
    /// Whether the rows are ranked by churn.
    pub churn: bool,
    /// The live blocks that are asked for by age.
    pub ages: Option<Wanted>,
    /// The file with suppressions of leaks.
    pub suppressions: Option<PathBuf>,
    /// Whether the user's settings count.
    pub settings: bool,
    /// Whether an overview is wanted, in place of the request's rows.
    pub is_overview: bool,
    /// Growth, in bytes, above which the report ends with a status of its own.
    pub fail_above: Option<u64>,
    /// Output format.
    pub format: Format,
    /// Files whose source lines are asked for.
    pub source: Option<Glob>,
    /// Whether a page has no source lines.
    pub no_source: bool,
    /// Whether all facts and whole names are shown.
    pub is_verbose: bool,
    /// Output file; standard output if none.
    pub output: Option<PathBuf>,
    /// Folders of separate debug files, in the order of the search.
    pub debug_dirs: Vec<PathBuf>,
    /// Whether servers are asked for debug information.
    pub debuginfod: bool,
}

impl Arguments {
    /// Parses the words of a command line, the program's name first.
    ///
    /// # Errors
    ///
    /// Fails with clap's error, which may be a request for help.
    pub fn of<W: Into<OsString> + Clone>(words: impl IntoIterator<Item = W>) -> Result<Arguments, clap::Error> {
        let matches = Arguments::command().try_get_matches_from(words)?;
        let mut typed = matches.ids().filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine));
        let is_plain = typed.all(|id| NEUTRAL.contains(&id.as_str()));
        Ok(Arguments { is_plain, ..Arguments::from_arg_matches(&matches)? })
    }

    /// Checks and combines the arguments.
    ///
    /// # Errors
    ///
    /// Fails with a sentence if arguments contradict each other.
    pub fn into_config(self) -> Result<Config, String> {
        self.check()?;
        // Flame graphs have functions, so functions of one line stay apart.
        let (by, limit) = match self.format {
            Format::Massif => (By::Tree, massif::LIMIT),
            Format::Folded => (By::Tree, 0),
            // The page groups by itself; the report makes its head.
            Format::Html => (By::Module, 0),
            _ => (self.by.unwrap_or(By::Lineno), Request::LIMIT),
        };
        let at = match self.at {
            _ if self.churn => At::Total,
            Some(Moment::At(at)) => at,
            _ => At::Live,
        };
        let request = Request {
            by,
            at,
            domain: self.domain,
            cumulative: self.cumulative,
            filters: Filters { include: self.filter, exclude: self.exclude, all_frames: self.all_frames },
            focus: Focus { focus: self.focus, ignore: self.ignore, trim: self.trim },
            blame: self.blame,
            skip: self.skip.iter().map(|pattern| Glob::new(pattern)).collect(),
            frames: self.frames,
            raw_frames: self.raw_frames,
            inverted: self.inverted || self.format == Format::Massif,
            fold: self.fold_recursion,
            start_code: self.raw_frames || matches!(self.format, Format::Folded | Format::Html),
            limit: self.limit.unwrap_or(limit),
            ..Request::default()
        };
        let past = match (self.at, self.since) {
            _ if self.leaks => Some(WantedPast::Leaks),
            (_, Some(since)) => Some(WantedPast::Range(since, self.until)),
            (Some(Moment::Time(time)), None) => Some(WantedPast::At(time)),
            (_, None) => None,
        };
        let wanted = Wanted { older: self.older_than, younger: self.younger_than, by_class: self.by == Some(By::Age) };
        let ages = (wanted != Wanted::default()).then_some(wanted);
        let mut debug_dirs = self.debug_dir;
        debug_dirs.push(DEBUG_DIR.into());
        let (is_overview, fail_above) = (self.is_plain, self.fail_above);
        let source = self.source.map(|pattern| Glob::new(&pattern));
        let Arguments {
            snapshot,
            tree,
            diff: old,
            suppressions,
            format,
            no_source,
            verbose: is_verbose,
            output,
            debuginfod,
            ..
        } = self;
        let is_tree = tree.is_some();
        // clap makes sure that either of the two is given.
        let snapshot = tree.or(snapshot).unwrap_or_default();
        let settings = !self.no_config;
        Ok(Config {
            snapshot,
            old,
            is_tree,
            request,
            past,
            churn: self.churn,
            ages,
            suppressions,
            settings,
            is_overview,
            fail_above,
            format,
            source,
            no_source,
            is_verbose,
            output,
            debug_dirs,
            debuginfod,
        })
    }

    fn check(&self) -> Result<(), String> {
        let by = self.by.map_or("", By::name);
        let refuse = |condition: bool, text: String| if condition { Err(text) } else { Ok(()) };
        refuse(
            self.cumulative && self.by.is_some_and(|by| !by.is_of_frames()),
            format!(
                "--cumulative counts single frames, and a {by} is none: use --by lineno, filename, function or module"
            ),
        )?;
        refuse(
            self.leaks && (self.by == Some(By::Tree) || self.format.is_by_traceback()),
            "--leaks has a row for each group: use --by lineno, function, traceback or the like, and text, json or csv"
                .to_string(),
        )?;
        let is_past = self.leaks || self.since.is_some() || matches!(self.at, Some(Moment::Time(_)));
        refuse(
            is_past && matches!(self.by, Some(By::Size | By::Thread | By::Age)),
            format!("--by {by} is not known of the past: the history is kept by stack"),
        )?;
        refuse(
            is_past && self.diff.is_some(),
            "--at with a time looks into a single snapshot: use --since, or leave --diff out".to_string(),
        )?;
        let at = if let Some(Moment::At(at)) = self.at { at } else { At::Live };
        refuse(
            at != At::Live && self.by.is_some_and(By::is_of_live_blocks),
            format!(
                "--by {by} needs --at live: totals are kept by stack and thread, so {by}s are known of the live blocks only, not of --at {}",
                at.name()
            ),
        )?;
        let is_of_age = self.older_than.is_some() || self.younger_than.is_some();
        refuse(
            self.churn && !matches!(self.at, None | Some(Moment::At(At::Live | At::Total))),
            "--churn is of all blocks since the start: use it with --at total".to_string(),
        )?;
        let is_of_no_stacks = matches!(self.by, Some(By::Tree | By::Size | By::Thread | By::Age));
        refuse(
            self.churn && (is_of_no_stacks || self.format.is_by_traceback()),
            "--churn has a row for each group: use --by lineno, function, traceback or the like, and text, json or csv"
                .to_string(),
        )?;
        refuse(
            is_of_age && (at != At::Live || is_past),
            "--older-than and --younger-than need --at live: ages are known of live blocks only".to_string(),
        )?;
        refuse(
            is_of_age && self.format == Format::Massif,
            "--format massif is of all memory over time: leave --older-than and --younger-than out".to_string(),
        )?;
        refuse(
            self.older_than.zip(self.younger_than).is_some_and(|(older, younger)| older >= younger),
            "no block is older than --older-than and younger than --younger-than".to_string(),
        )?;
        refuse(
            self.fail_above.is_some() && self.diff.is_none() && self.since.is_none(),
            "--fail-above is a bound of growth: use it with --diff or --since".to_string(),
        )?;
        refuse(
            self.inverted && self.by != Some(By::Tree),
            "--inverted turns the call tree round: use it with --by tree".to_string(),
        )?;
        refuse(
            self.all_frames && self.filter.is_empty() && self.exclude.is_empty(),
            "--all-frames changes how --filter and --exclude work: give one of them too".to_string(),
        )?;
        let are_of_files = [&self.filter, &self.exclude].into_iter().any(|patterns| !patterns.is_empty());
        let are_of_frames = [&self.focus, &self.ignore, &self.trim].into_iter().any(|patterns| !patterns.is_empty());
        refuse(
            self.by == Some(By::Thread) && at != At::Live && (are_of_files || are_of_frames),
            format!(
                "--filter, --exclude, --focus, --ignore and --trim need tracebacks, and sums of threads at --at {} have \
                 none",
                at.name()
            ),
        )?;
        refuse(
            self.fold_recursion && self.by != Some(By::Tree) && !self.format.is_by_traceback(),
            "--fold-recursion is for trees: use it with --by tree, or --format folded or html".to_string(),
        )?;
        refuse(
            self.blame == Some(Blame::Leaf) && !self.skip.is_empty(),
            "--skip says whose code is not the program's own: leave --blame leaf out".to_string(),
        )?;
        refuse(
            self.source.is_some() && !matches!(self.format, Format::Text | Format::Json | Format::Html),
            "--source adds source lines to text, JSON and the page: use it with --format text, json or html"
                .to_string(),
        )?;
        refuse(
            self.limit.is_some() && self.format == Format::Html,
            "--limit cuts rows, and a page has all: leave it out with --format html".to_string(),
        )?;
        refuse(
            self.no_source && self.format != Format::Html,
            "--no-source leaves source lines out of a page: use it with --format html".to_string(),
        )?;
        refuse(
            self.verbose && self.format != Format::Text,
            "--verbose is for people: use it with --format text; other formats have everything".to_string(),
        )?;
        if !self.format.is_by_traceback() {
            return Ok(());
        }
        refuse(
            self.format == Format::Massif && self.at.is_some(),
            "--format massif has the whole run, with the peak and the end: leave --at out".to_string(),
        )?;
        refuse(
            self.format == Format::Massif && (self.tree.is_some() || are_of_files || are_of_frames),
            "--format massif has all memory of a process over time: leave --tree, --filter, --exclude, --focus, --ignore \
             and --trim out"
                .to_string(),
        )?;
        let format = self.format.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
        refuse(
            self.format != Format::Html && (self.diff.is_some() || self.since.is_some()),
            format!("--format {format} has one figure per traceback: use text, json or csv with --diff or --since"),
        )?;
        refuse(
            self.cumulative || self.inverted || self.by.is_some_and(|by| !matches!(by, By::Traceback | By::Tree)),
            format!("--format {format} is by traceback: leave --by, --cumulative and --inverted out"),
        )
    }
}

impl By {
    /// Name of the grouping on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            By::Filename => "filename",
            By::Lineno => "lineno",
            By::Function => "function",
            By::Module => "module",
            By::Traceback => "traceback",
            By::Tree => "tree",
            By::Size => "size",
            By::Thread => "thread",
            By::Age => "age",
        }
    }
}

impl ValueEnum for By {
    fn value_variants<'a>() -> &'a [By] {
        &[By::Filename, By::Lineno, By::Function, By::Module, By::Traceback, By::Tree, By::Size, By::Thread, By::Age]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// Returns the milliseconds of an age as typed.
fn age(text: &str) -> Result<u64, String> {
    duration(text).ok_or_else(|| "500ms, 5s, 10m, 2h and 1d are ages".to_owned())
}

/// Joins the lines of clap's error into one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let what =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let what = what.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    format!("{}; see report --help", what.strip_prefix("error: ").unwrap_or(&what))
}

#[cfg(test)]
mod tests {
    use super::{Arguments, one_line};
    use clap::CommandFactory;

    fn config(arguments: &[&str]) -> Result<super::Config, String> {
        let arguments = ["report", "a.snap.zst"].iter().chain(arguments);
        Arguments::of(arguments).map_err(|error| one_line(&error))?.into_config()
    }

    #[test]
    fn the_declaration_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_refusal_is_one_line_with_a_reason() {
        for (arguments, reason) in [
            (&["--by", "traceback", "--cumulative"][..], "a traceback is none"),
            (&["--by", "size", "--cumulative"], "a size is none"),
            (&["--by", "size", "--at", "peak"], "live blocks only"),
            (&["--by", "size", "--at", "-10m"], "not known of the past"),
            (&["--by", "thread", "--since", "03:00"], "not known of the past"),
            (&["--by", "age", "--at", "total"], "live blocks only"),
            (&["--by", "age", "--since", "-1m"], "not known of the past"),
            (&["--older-than", "5s", "--at", "peak"], "need --at live"),
            (&["--older-than", "5s", "--at", "-1m"], "need --at live"),
            (&["--older-than", "5s", "--since", "-1m"], "cannot be used with"),
            (&["--older-than", "10s", "--younger-than", "5s"], "no block is older"),
            (&["--younger-than", "old"], "are ages"),
            (&["--younger-than", "1s", "--format", "massif"], "of all memory over time"),
            (&["--churn", "--at", "peak"], "with --at total"),
            (&["--churn", "--by", "size"], "a row for each group"),
            (&["--churn", "--format", "html"], "a row for each group"),
            (&["--churn", "--leaks"], "cannot be used with"),
            (&["--at", "3 o'clock"], "use live, peak, total, or a time"),
            (&["--since", "yesterday"], "mark:NAME are times"),
            (&["--until", "-1m"], "--since"),
            (&["--since", "-1m", "--diff", "b"], "cannot be used with"),
            (&["--at", "-1m", "--diff", "b"], "use --since, or leave --diff out"),
            (&["--since", "-1m", "--at", "peak"], "cannot be used with"),
            (&["--since", "-1m", "--format", "folded"], "with --diff or --since"),
            (&["--leaks", "--by", "tree"], "a row for each group"),
            (&["--leaks", "--by", "size"], "not known of the past"),
            (&["--leaks", "--at", "peak"], "cannot be used with"),
            (&["--by", "thread", "--at", "total", "--filter", "a"], "need tracebacks"),
            (&["--by", "thread", "--at", "peak", "--focus", "a"], "need tracebacks"),
            (&["--by", "tree", "--cumulative"], "a tree is none"),
            (&["--fold-recursion"], "for trees"),
            (&["--format", "massif", "--at", "peak"], "the whole run"),
            (&["--format", "massif", "--focus", "a"], "leave --tree"),
            (&["--format", "massif", "--diff", "b"], "one figure"),
            (&["--fail-above", "5M"], "with --diff or --since"),
            (&["--fail-above", "much", "--diff", "b"], "a number of bytes is expected"),
            (&["--format", "markdown", "--source"], "--format text, json or html"),
            (&["--focus", ""], "the pattern is empty"),
            (&["--suppressions", "a"], "--leaks"),
            (&["--inverted"], "--by tree"),
            (&["--format", "html", "--by", "tree", "--inverted"], "--inverted out"),
            (&["--by", "colour"], "invalid value 'colour'"),
            (&["--format", "xml"], "invalid value 'xml'"),
            (&["--limit", "-1"], "unexpected argument"),
            (&["--limit", "many"], "invalid value 'many'"),
            (&["--domain", "heap"], "no domain is called"),
            (&["--filter", ""], "the pattern is empty"),
            (&["--all-frames"], "--filter"),
            (&["--blame", "leaf", "--skip", "a"], "leave --blame leaf out"),
            (&["--blame", "mine"], "invalid value 'mine'"),
            (&["--source", "--format", "csv"], "--format text, json or html"),
            (&["-v", "--format", "csv"], "--format text"),
            (&["--format", "folded", "--diff", "b"], "one figure"),
            (&["--format", "folded", "--by", "size"], "by traceback"),
            (&["--format", "html", "--cumulative"], "html is by traceback"),
            (&["--frobnicate"], "unexpected argument '--frobnicate'"),
            (&["b.snap.zst"], "unexpected argument 'b.snap.zst'"),
            (&["--tree", "d"], "cannot be used with"),
        ] {
            let error = config(arguments).expect_err("refused");
            assert!(error.contains(reason), "{arguments:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let tree = Arguments::of(["report", "--tree", "d", "--diff", "e"]).expect("two trees");
        let tree = tree.into_config().expect("compared");
        assert!(tree.is_tree && tree.snapshot.ends_with("d") && tree.old.is_some_and(|old| old.ends_with("e")));
        let nothing = Arguments::of(["report"]).expect_err("a snapshot is needed");
        assert!(one_line(&nothing).contains("<SNAP>"), "{}", one_line(&nothing));
    }

    #[test]
    fn the_examples_of_the_help_are_accepted() {
        let commands = super::EXAMPLES.lines().map(str::trim).filter(|line| line.starts_with("report "));
        let commands = commands.map(|line| line.split("  ").next().unwrap_or(""));
        let mut count = 0;
        for command in commands {
            let arguments = command.split(' ').map(|word| word.trim_matches('\''));
            let arguments = Arguments::of(arguments).unwrap_or_else(|error| panic!("{command}: {error}"));
            arguments.into_config().unwrap_or_else(|error| panic!("{command}: {error}"));
            count += 1;
        }
        assert_eq!(count, 16);
        assert!(super::EXAMPLES.lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn whatever_chooses_something_is_no_overview() {
        let is_overview = |arguments: &[&str]| config(arguments).expect("accepted").is_overview;
        for chosen in [
            &["--at", "live"][..],
            &["--by", "lineno"],
            &["--limit", "10"],
            &["--format", "text"],
            &["--source"],
            &["-v"],
            &["--blame", "own"],
            &["--skip", "a"],
            &["--frames", "mixed"],
            &["--diff", "b"],
        ] {
            assert!(!is_overview(chosen), "{chosen:?}");
        }
        for neutral in [&["-o", "file"][..], &["--debug-dir", "d"], &["--debuginfod"], &["--no-config"]] {
            assert!(is_overview(neutral), "{neutral:?}");
        }
        assert!(!Arguments::of(["report", "--tree", "d"]).expect("a tree").into_config().expect("one").is_overview);
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = config(&[]).unwrap();
        assert!(config.is_overview);
        assert_eq!(config.request.by.name(), "lineno");
        assert_eq!(config.request.at.name(), "live");
        assert_eq!(config.request.limit, 10);
        assert_eq!(config.request.domain, None);
        assert!(!config.request.cumulative && !config.request.raw_frames && config.source.is_none());
    }
}
