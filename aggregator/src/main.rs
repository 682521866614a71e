//! The `aggregator` program: turns the library's results into lines on standard error and an exit
//! status.

use anyhow::Context;
use heapline_aggregator::base::private_dir;
use heapline_aggregator::cli::{Invocation, Usage};
use heapline_aggregator::names::worker;
use heapline_aggregator::process::library;
use heapline_aggregator::{attach, cli, control, launch};
use heapline_shared_format::text::printable;
use std::io::{self, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Exit status of wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(Usage::Shown(text)) => return print(&text),
        Err(Usage::Wrong(text)) => return fail(&text, USAGE),
    };
    if let Err(error) = start_log() {
        return fail(&format!("{error:#}"), USAGE);
    }
    worker::enable();
    let status = carry_out(invocation);
    private_dir::leave();
    status
}

fn carry_out(invocation: Invocation) -> ExitCode {
    match invocation {
        Invocation::Run(config) => match launch::run(&config) {
            Ok(ran) => {
                say(&ran.lines);
                // Exit statuses have eight bits.
                u8::try_from(ran.status & 0xff).map_or(ExitCode::FAILURE, ExitCode::from)
            }
            Err(error) => fail(&error.to_string(), error.exit_status()),
        },
        Invocation::Attach(config) => match attach::attach(&config, |line| say(&[line.to_owned()])) {
            Ok(lines) => {
                say(&lines);
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string(), 1),
        },
        Invocation::Ctl { pid, ask, json } => match control::ask(pid, ask, json) {
            Ok(text) => print(&format!("{text}\n")),
            Err(error) => fail(&error.to_string(), 1),
        },
        Invocation::Symbols(task) => {
            if worker::work(&task) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Invocation::List { json } => match control::list(json) {
            Ok(text) => print(&format!("{text}\n")),
            Err(error) => fail(&error.to_string(), 1),
        },
        Invocation::Collector { output } => match library::write_to(&output) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string(), 1),
        },
    }
}

/// Logs to standard error if `HEAPLINE_LOG` is set, in the syntax of tracing-subscriber's
/// EnvFilter.
fn start_log() -> anyhow::Result<()> {
    let Some(filter) = std::env::var_os("HEAPLINE_LOG") else { return Ok(()) };
    let filter = filter.to_str().context("HEAPLINE_LOG is no text; use a level such as debug")?;
    let filter = EnvFilter::try_new(filter).context("HEAPLINE_LOG is not understood; use a level such as debug")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    Ok(())
}

/// Prints to standard output. A closed pipe is a quiet, successful end.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to standard output: {error}"), 1)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn say(lines: &[String]) {
    let mut err = io::stderr().lock();
    for line in lines {
        // A user who closed standard error gets no message.
        let _ = writeln!(err, "heapline: {}", printable(line));
    }
}

fn fail(text: &str, status: u8) -> ExitCode {
    say(&[text.to_owned()]);
    ExitCode::from(status)
}
