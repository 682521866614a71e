//! The command line: the typed arguments, and their meaning.

use crate::attach::AttachConfig;
use crate::control::{Ask, Change};
use crate::history::DEFAULT_MEMORY;
use crate::launch::RunConfig;
use crate::names::worker;
use crate::process::elf;
use crate::session::Sampling;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use heapline_shared_format::text::{parse_size, shell_word};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

const DEFAULT_NFRAME: u32 = 64;
/// Largest number of frames, the same as tracemalloc's limit.
const MAX_NFRAME: i64 = 65_535;

const EXAMPLES: &str = "\
Examples:
  aggregator run -- ./app --its arguments    trace a program from start to end
  aggregator run -o m.snap.zst -- make -j4   and all processes that it starts
  aggregator --attach 4711 --duration 60     a running process, for a minute
  aggregator --attach 4711 --sample 512K     by samples, for a busy process
  aggregator ctl 4711 stats                  current and peak, by layer
  aggregator list                            what is traced on this machine
  report m.snap.zst --at peak                read a snapshot";

const RUN_EXAMPLES: &str = "\
Examples:
  aggregator run -- ./app --its arguments    writes heapline-app-PID.snap.zst
  aggregator run -o m.snap.zst -- make -j4   m/ is for its children
  aggregator run --no-follow -- ./server     the command alone
  aggregator run --sample 512K -- ./server   one in 512 KiB of allocated bytes";

const CTL_EXAMPLES: &str = "\
Examples:
  aggregator ctl 4711 stats --format json
  aggregator ctl 4711 snapshot -o now.snap.zst
  aggregator ctl 4711 lookup 0x55d0c0ffee00
  aggregator ctl 4711 leaks --stop           what nothing points to any more
  aggregator ctl 4711 mark deploy-42         report --at mark:deploy-42";

/// Trace the memory of a whole process: like Python's tracemalloc, from outside.
#[derive(Debug, Parser)]
#[command(name = "aggregator", version, args_conflicts_with_subcommands = true, arg_required_else_help = false,
          override_usage = "aggregator run [OPTIONS] -- COMMAND [ARGS...]\n       \
                            aggregator --attach PID [OPTIONS]\n       \
                            aggregator ctl PID ASK\n       \
                            aggregator list [--format FORMAT]\n       \
                            aggregator collector -o FILE",
          after_help = EXAMPLES)]
struct Typed {
    /// Trace a process that runs already, started in any way: the collector is brought into it, and
    /// taken out at the end
    #[arg(long, value_name = "PID", value_parser = pid)]
    attach: Option<u32>,
    /// Detach after so many seconds; otherwise Ctrl-C detaches
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "attach")]
    duration: Option<Duration>,
    /// Look so many seconds for a thread that can be borrowed to bring the collector in, and at
    /// every thread ten times at least
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "attach", default_value = "5")]
    wait: Duration,
    /// Trace the processes that it starts from now on too, each in its own right
    #[arg(long, requires = "attach")]
    follow: bool,
    #[command(flatten)]
    trace: TraceOptions,
    #[command(subcommand)]
    command: Option<TypedCommand>,
}

#[derive(Debug, Args)]
struct TraceOptions {
    /// Where the snapshot goes [default: heapline-<name>-<pid>.snap.zst]. With --follow: a folder
    /// for the snapshots of all processes; or a FILE.snap.zst for the first one's, and FILE/ takes
    /// those of its children
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Frames kept per traceback
    #[arg(long, value_name = "N", default_value_t = DEFAULT_NFRAME,
          value_parser = clap::value_parser!(u32).range(1..=MAX_NFRAME))]
    nframe: u32,
    /// Ceiling for what the rings take in the target, in bytes; K, M and G are 1024, 1024^2 and
    /// 1024^3
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = bytes)]
    max_target_memory: u64,
    /// Record samples, one in so many allocated bytes on average, and estimate from them; K, M and
    /// G as above
    #[arg(long, value_name = "BYTES", value_parser = distance)]
    sample: Option<u64>,
    /// Adapt the distance of samples to so many a second; begins with --sample, or 512K
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples_per_second: Option<u32>,
    /// Memory of the aggregator for the history of each process, in bytes; K, M and G as above
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MEMORY, value_parser = bytes, conflicts_with = "no_history")]
    history_memory: u64,
    /// Record no history: report then knows the memory at the snapshot and at the peak only
    #[arg(long)]
    no_history: bool,
    /// Begin with a pause: allocations count from ctl PID resume on
    #[arg(long)]
    paused: bool,
    /// Do not look up functions and lines for the snapshot: report does, while the files are there
    #[arg(long)]
    no_names: bool,
}

#[derive(Debug, Subcommand)]
enum TypedCommand {
    /// Start COMMAND traced from its first instruction
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        #[command(flatten)]
        trace: TraceOptions,
        /// Trace the processes that it starts too, each in its own right (the default)
        #[arg(long, overrides_with = "no_follow")]
        follow: bool,
        /// Trace the command alone
        #[arg(long, overrides_with = "follow")]
        no_follow: bool,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Ask the aggregator of a traced process
    #[command(after_help = CTL_EXAMPLES, subcommand_value_name = "ASK", subcommand_help_heading = "What to ask")]
    Ctl {
        /// The traced process
        #[arg(value_parser = pid)]
        pid: u32,
        #[command(subcommand)]
        ask: TypedAsk,
    },
    /// Read the symbols of standard input: the aggregator runs this command for itself
    #[command(hide = true)]
    Symbols {
        /// Path of the file as the process knew it
        #[arg(long)]
        path: String,
        /// Build-id, in hexadecimal digits
        #[arg(long)]
        build_id: String,
        /// Root folder of the process
        #[arg(long)]
        root: PathBuf,
        /// A snapshot waits for the symbols
        #[arg(long)]
        urgent: bool,
    },
    /// Show what is traced on this machine: each process, its memory by layer, and its aggregator
    List {
        /// How
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Write the collector's library to a file, for LD_PRELOAD: it stays idle until somebody
    /// attaches
    Collector {
        /// Where it goes
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum TypedAsk {
    /// Print current, peak and what Heapline itself uses
    Stats {
        /// How
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Write a snapshot; the process goes on
    Snapshot {
        /// Where it goes [default: heapline-<name>-<pid>.snap.zst]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make the peak what is live now; traces stay
    ResetPeak,
    /// Change how far apart samples are: sample=BYTES, or samples-per-second=N
    Set {
        /// What, and to which value
        #[arg(value_name = "NAME=VALUE", value_parser = change)]
        change: Change,
    },
    /// Forget all traces; tracing goes on
    ClearTraces,
    /// Show where the live block at ADDR was allocated
    Lookup {
        /// Its address, hexadecimal with 0x
        #[arg(value_name = "ADDR", value_parser = address)]
        address: u64,
        /// How
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Find the live blocks that nothing in the process points to. Without --stop: by three passes,
    /// a second apart
    Leaks {
        /// Stop all threads for one exact pass
        #[arg(long)]
        stop: bool,
        /// How
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Put a mark into the history: report --at mark:TEXT shows the memory at this moment
    Mark {
        /// A few words, as in \"deploy 42\"
        #[arg(value_name = "TEXT")]
        text: String,
    },
    /// Let allocations count no more, until resume; frees still count
    Pause,
    /// Let allocations count again
    Resume,
    /// End tracing and write the last snapshot; the process goes on
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Distance of samples at the start, for an adapted distance without `--sample`.
const DEFAULT_DISTANCE: u64 = 512 << 10;

impl TraceOptions {
    fn sampling(&self) -> Option<Sampling> {
        let interval = self.sample.or(self.samples_per_second.map(|_| DEFAULT_DISTANCE))?;
        Some(Sampling { interval, per_second: self.samples_per_second })
    }

    fn history(&self) -> Option<usize> {
        (!self.no_history).then(|| usize::try_from(self.history_memory).unwrap_or(usize::MAX))
    }
}

/// The work to do.
#[derive(Debug)]
#[expect(missing_docs, reason = "one for each line of the contract")]
pub enum Invocation {
    Run(RunConfig),
    Attach(AttachConfig),
    Ctl { pid: u32, ask: Ask, json: bool },
    List { json: bool },
    Collector { output: PathBuf },
    Symbols(worker::Task),
}

/// A message to print instead of work.
#[derive(Debug, PartialEq, Eq)]
pub enum Usage {
    /// Help or version, for standard output.
    Shown(String),
    /// Description of a mistake, in one line.
    Wrong(String),
}

/// Parses the arguments, including the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Usage> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let typed = Typed::try_parse_from(&arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Usage::Shown(error.to_string()),
        _ => Usage::Wrong(mistake(&error, arguments.get(1..).unwrap_or_default())),
    })?;
    match (typed.command, typed.attach) {
        (Some(command), _) => Ok(command.meaning()),
        (None, Some(pid)) => Ok(Invocation::Attach(AttachConfig {
            pid,
            sampling: typed.trace.sampling(),
            history: typed.trace.history(),
            paused: typed.trace.paused,
            output: typed.trace.output,
            nframe: typed.trace.nframe,
            names: !typed.trace.no_names,
            max_target_memory: typed.trace.max_target_memory,
            duration: typed.duration,
            wait: typed.wait,
            follows: typed.follow,
        })),
        (None, None) => {
            Err(Usage::Wrong("nothing to do: use run -- COMMAND, --attach PID, ctl PID or list; see --help".to_owned()))
        }
    }
}

impl TypedCommand {
    fn meaning(self) -> Invocation {
        match self {
            // clap sets only the later of the two options.
            TypedCommand::Run { trace, follow, no_follow, command } => Invocation::Run(RunConfig {
                command,
                sampling: trace.sampling(),
                history: trace.history(),
                paused: trace.paused,
                output: trace.output,
                nframe: trace.nframe,
                names: !trace.no_names,
                max_target_memory: trace.max_target_memory,
                follows: follow || !no_follow,
            }),
            TypedCommand::Symbols { path, build_id, root, urgent } => {
                Invocation::Symbols(worker::Task { path, build_id, root, urgent })
            }
            TypedCommand::List { format } => Invocation::List { json: format == Format::Json },
            TypedCommand::Collector { output } => Invocation::Collector { output },
            TypedCommand::Ctl { pid, ask } => {
                let (ask, format) = match ask {
                    TypedAsk::Stats { format } => (Ask::Stats, format),
                    TypedAsk::Snapshot { output } => (Ask::Snapshot(output), Format::Text),
                    TypedAsk::ResetPeak => (Ask::ResetPeak, Format::Text),
                    TypedAsk::Set { change } => (Ask::Set(change), Format::Text),
                    TypedAsk::ClearTraces => (Ask::ClearTraces, Format::Text),
                    TypedAsk::Lookup { address, format } => (Ask::Lookup(address), format),
                    TypedAsk::Leaks { stop, format } => (Ask::Leaks { stop }, format),
                    TypedAsk::Mark { text } => (Ask::Mark(text), Format::Text),
                    TypedAsk::Pause => (Ask::Pause(true), Format::Text),
                    TypedAsk::Resume => (Ask::Pause(false), Format::Text),
                    TypedAsk::Detach => (Ask::Detach, Format::Text),
                };
                Invocation::Ctl { pid, ask, json: format == Format::Json }
            }
        }
    }
}

/// Describes a mistake in the arguments, in one line.
fn mistake(error: &clap::Error, arguments: &[OsString]) -> String {
    let is_ctl = arguments.first().is_some_and(|first| first == "ctl");
    match error.kind() {
        ErrorKind::InvalidSubcommand if is_ctl => unknown_ask(&of_error(error, ContextKind::InvalidSubcommand)),
        // A word without any likeness to a known question.
        ErrorKind::UnknownArgument if is_ctl && !of_error(error, ContextKind::InvalidArg).starts_with('-') => {
            unknown_ask(&of_error(error, ContextKind::InvalidArg))
        }
        ErrorKind::InvalidSubcommand => unknown_command(error, arguments),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if is_ctl => format!(
            "ctl wants a traced process, and what to ask: ctl PID ASK, where ASK is one of {}; aggregator list shows what is \
             traced; see ctl --help",
            known("ctl")
        ),
        ErrorKind::MissingSubcommand if is_ctl => {
            format!("ctl wants to know what to ask: {}; see ctl --help", known("ctl"))
        }
        _ => one_line(&error.to_string()),
    }
}

fn unknown_ask(asked: &str) -> String {
    if is_number(asked) {
        return format!("ctl wants the process first, then what to ask: ctl {asked} ASK; see ctl --help");
    }
    format!("ctl does not know {asked:?}: it knows {}; see ctl --help", known("ctl"))
}

/// Describes a first argument that is no command: a program, a slip, or anything else.
fn unknown_command(error: &clap::Error, arguments: &[OsString]) -> String {
    let word = of_error(error, ContextKind::InvalidSubcommand);
    let commands = known("");
    let similar = of_error(error, ContextKind::SuggestedSubcommand);
    let similar = if commands.split(", ").any(|command| command == similar) { similar } else { String::new() };
    let words =
        || arguments.iter().skip_while(|argument| **argument != *word).map(|word| shell_word(&word.to_string_lossy()));
    let process = arguments.iter().filter_map(|argument| argument.to_str()).find(|argument| is_number(argument));
    if word == "attach" || is_number(&word) {
        return format!("to trace a running process use: aggregator --attach {}", process.unwrap_or("PID"));
    }
    if elf::resolve(OsStr::new(&word)).is_some() {
        return format!("to trace a program use: aggregator run -- {}", words().collect::<Vec<_>>().join(" "));
    }
    let meant = if similar.is_empty() {
        "a program is traced by run -- PROGRAM".to_owned()
    } else {
        format!("{similar} may be meant")
    };
    format!("there is no command {word:?}: {meant}; the commands are {commands}; see --help")
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns a fact of an error, as text; empty without the fact.
fn of_error(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.first().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// Lists the commands, or what one of the commands can be asked.
fn known(of: &str) -> String {
    let all = Typed::command();
    let command = all.find_subcommand(of).unwrap_or(&all);
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.map(clap::Command::get_name).collect::<Vec<_>>().join(", ")
}

fn pid(text: &str) -> Result<u32, String> {
    let expected = || "the number of a process is expected, as in 4711: pgrep NAME finds it, ps shows all".to_owned();
    text.parse().ok().filter(|&pid| pid > 0).ok_or_else(expected)
}

/// Returns clap's message without its second paragraph, which shows the usage.
fn one_line(message: &str) -> String {
    let first = message.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    format!("{}; see --help", words.join(" "))
}

fn distance(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("one in 0 bytes cannot be: leave it out to record everything".to_owned()),
        distance => Ok(distance),
    }
}

fn change(text: &str) -> Result<Change, String> {
    match text.split_once('=') {
        Some(("sample", value)) => distance(value).map(Change::Sample),
        Some(("samples-per-second", value)) => match value.parse() {
            Ok(n) if n > 0 => Ok(Change::SamplesPerSecond(n)),
            _ => Err(format!("{value:?} is no number of samples: use samples-per-second=1000, say")),
        },
        _ => Err("what can be set is sample=BYTES and samples-per-second=N".to_owned()),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes > 0 { Ok(bytes) } else { Err("out of range".to_owned()) }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let expected = || "a number of seconds is expected, as in 10 or 0.5".to_owned();
    let seconds: f64 = text.parse().map_err(|_| expected())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| expected())
}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let parsed = digits.map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16));
    parsed.map_err(|_| "an address is expected, as in 0x7f0123456780".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, Usage> {
        parse(line.split(' ').map(OsString::from))
    }

    fn wrong(line: &str) -> String {
        match parsed(line) {
            Err(Usage::Wrong(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Typed::command().debug_assert();
    }

    #[test]
    fn both_command_lines_of_the_contract_are_understood() {
        let Ok(Invocation::Attach(attach)) = parsed("aggregator --attach 12 --duration 0.5 --nframe 7") else {
            panic!("attach")
        };
        assert_eq!((attach.pid, attach.nframe, attach.duration), (12, 7, Some(Duration::from_millis(500))));
        assert_eq!(attach.wait, Duration::from_secs(5));
        let waits = parsed("aggregator --attach 12 --wait 0.5");
        assert!(matches!(waits, Ok(Invocation::Attach(config)) if config.wait == Duration::from_millis(500)));
        let Ok(Invocation::Run(run)) = parsed("aggregator run --max-target-memory 1M -- ls --nframe x") else {
            panic!("run")
        };
        assert_eq!(run.command, ["ls", "--nframe", "x"]);
        assert_eq!(run.max_target_memory, 1 << 20);
        assert!(matches!(
            parsed("aggregator ctl 5 lookup 0xff --format json"),
            Ok(Invocation::Ctl { pid: 5, ask: Ask::Lookup(255), json: true })
        ));
    }

    #[test]
    fn children_are_followed_unless_that_is_refused() {
        let follows = |line: &str| match parsed(line) {
            Ok(Invocation::Run(config)) => config.follows,
            Ok(Invocation::Attach(config)) => config.follows,
            other => panic!("{line}: {other:?}"),
        };
        assert!(follows("aggregator run -- ls") && follows("aggregator run --follow -- ls"));
        assert!(!follows("aggregator run --no-follow -- ls"));
        assert!(follows("aggregator run --no-follow --follow -- ls"), "the last one counts");
        assert!(!follows("aggregator run --follow --no-follow -- ls"));
        assert!(!follows("aggregator --attach 1") && follows("aggregator --attach 1 --follow"));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for line in [
            "aggregator",
            "aggregator run",
            "aggregator --attach x",
            "aggregator --attach 1 --nframe 0",
            "aggregator run --nframe 65536 -- ls",
            "aggregator run --max-target-memory 0 -- ls",
            "aggregator run --max-target-memory 99999999999G -- ls",
            "aggregator --duration 1",
            "aggregator --attach 1 --duration -1",
            "aggregator --wait 1",
            "aggregator --attach 1 --wait soon",
            "aggregator ctl 1 explode",
            "aggregator ctl 1 lookup zz",
            "aggregator --bogus",
        ] {
            let text = wrong(line);
            assert!(!text.contains('\n') && text.ends_with("--help"), "{line}: {text}");
        }
        assert!(wrong("aggregator run --nframe 0 -- ls").contains("0 is not in 1..=65535"));
    }

    #[test]
    fn a_mistake_is_answered_with_what_was_meant() {
        let asks = "stats, snapshot, reset-peak, set, clear-traces, lookup, leaks, mark, pause, resume, detach";
        for (line, said) in [
            ("aggregator ./app --its x", "to trace a program use: aggregator run -- ./app --its x"),
            ("aggregator sh -c a;b", "to trace a program use: aggregator run -- sh -c 'a;b'"),
            (
                "aggregator lisst",
                "there is no command \"lisst\": list may be meant; the commands are run, ctl, list, collector",
            ),
            (
                "aggregator no-such-thing",
                "a program is traced by run -- PROGRAM; the commands are run, ctl, list, collector",
            ),
            ("aggregator symbol", "there is no command \"symbol\": a program is traced by run -- PROGRAM"),
            ("aggregator attach 12", "to trace a running process use: aggregator --attach 12"),
            ("aggregator 1234", "to trace a running process use: aggregator --attach 1234"),
            ("aggregator ctl stats 12", "ctl wants the process first"),
            ("aggregator ctl", "ctl wants a traced process, and what to ask: ctl PID ASK, where ASK is one of stats,"),
            ("aggregator ctl", "aggregator list shows what is traced"),
            ("aggregator ctl 5", &format!("ctl wants to know what to ask: {asks}; see")),
            ("aggregator ctl 5 stat", &format!("ctl does not know \"stat\": it knows {asks}; see")),
            ("aggregator ctl 5 stats --fast", "unexpected argument '--fast'"),
            ("aggregator ctl 5 explode", &format!("ctl does not know \"explode\": it knows {asks}; see")),
            ("aggregator ctl abc stats", "'abc' for '<PID>': the number of a process is expected, as in 4711"),
            ("aggregator --attach abc", "'abc' for '--attach <PID>': the number of a process is expected, as in 4711"),
            ("aggregator --attach 0", "the number of a process is expected"),
        ] {
            let text = wrong(line);
            assert!(text.contains(said) && !text.contains('\n'), "{line}: {text}");
        }
    }

    #[test]
    fn help_has_examples_that_are_understood() {
        for line in ["aggregator --help", "aggregator run --help", "aggregator ctl --help"] {
            let Err(Usage::Shown(text)) = parsed(line) else { panic!("{line} shows help") };
            let (_, examples) = text.split_once("\nExamples:\n").expect("examples");
            assert!(!text.contains("preloaded"), "an attach needs no preparation: {text}");
            for example in examples.lines() {
                assert!(example.len() < 80, "{example}");
                let command = example.trim().split("  ").next().unwrap_or_default();
                if command.starts_with("aggregator ") {
                    assert!(parsed(command).is_ok(), "{command}: {:?}", parsed(command));
                }
            }
        }
    }
}
