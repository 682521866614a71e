//! `aggregator run`: a command, traced from its first instruction, and otherwise as if it ran alone.

mod child;
pub mod inherited;
mod wait;

pub use child::StartError;

use crate::archive::{self, Place};
use crate::arena_map::{ArenaMap, ArenaMapError};
use crate::clock::Clock;
use crate::collector::{self, CollectorError};
use crate::control;
use crate::drain::{Image, Stop, Tasks};
use crate::elf::{self, Obstacle};
use crate::job::{Ending, Job};
use crate::output::{Destination, OutputError};
use crate::session::Settings;
use crate::tracer::{TraceError, Tracer};
use child::Command;
use heapline_shared_format::snapshot::End;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use wait::{Exit, Signals};

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Name and arguments.
    pub command: Vec<OsString>,
    /// Where the snapshot goes.
    pub output: Option<PathBuf>,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Ceiling for the rings, in bytes.
    pub max_target_memory: u64,
}

/// Why the command was not run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each names the layer that it comes from")]
pub enum LaunchError {
    #[error("{program:?} cannot be traced: it {}", obstacle.reason())]
    Obstacle { program: PathBuf, obstacle: Obstacle },
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Collector(#[from] CollectorError),
    #[error(transparent)]
    Arena(#[from] ArenaMapError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl LaunchError {
    /// The exit status, by the convention of env(1) and timeout(1): 127 not found, 126 not executable, 125 otherwise.
    pub fn exit_status(&self) -> u8 {
        match self {
            LaunchError::Start(StartError::Exec { source, .. }) if source.kind() == io::ErrorKind::NotFound => 127,
            LaunchError::Start(StartError::Exec { .. }) => 126,
            _ => 125,
        }
    }
}

/// What was done.
#[derive(Debug)]
pub struct Ran {
    /// The command's exit status, 128 + N for signal N.
    pub status: i32,
    /// What to say on standard error.
    pub lines: Vec<String>,
}

/// Runs a command to its end and writes its snapshot.
pub fn run(config: &RunConfig) -> Result<Ran, LaunchError> {
    let doubt = find_obstacle(config)?;
    let name = command_name(config);
    let wanted = config.output.clone().unwrap_or_else(|| default_output(&name, 0));
    let destination = Destination::check(&wanted)?;
    let library = collector::install()?;
    let map = Arc::new(ArenaMap::create(config.max_target_memory)?);
    let interrupted = Arc::new(AtomicBool::new(false));
    let place = Arc::new(OnceLock::new());
    let system = |what| move |source| LaunchError::System { what, source };
    let archive = archive::start(Arc::clone(&place), Arc::clone(&interrupted)).map_err(system("start a thread"))?;
    let settings = Settings {
        nframe: config.nframe,
        max_target_memory: config.max_target_memory,
        clock: Clock::of_this_machine(),
    };
    let tracer = Tracer::start(Arc::clone(&map), settings, launched(config), None, archive.clone())?;
    let command = Command::new(&config.command, &library, &map)?;
    let mut signals = Signals::take().map_err(system("take the signals over"))?;
    let child = command.fork()?;
    let pid = child.pid().unsigned_abs();
    tracer.set_target(Tasks::of(pid));
    let destination = match config.output {
        Some(_) => destination,
        None => destination.beside(&default_output(&name, pid)),
    };
    let place = place.get_or_init(|| Place { destination, pid }).clone();
    let job = Arc::new(Job::new(tracer, place, archive, Arc::clone(&interrupted), doubt));
    // Whoever sees the command can ask about it.
    let control = control::serve(&job);
    let child_pid = child.pid();
    child.begin()?;
    let exit = signals.wait_for(child_pid).map_err(system("wait for the command"))?;
    interrupt_on_signals(&interrupted).map_err(system("take the signals over"))?;
    Ok(finish(&job, exit, control.err().map(|error| error.to_string())))
}

fn finish(job: &Job, exit: Exit, control_error: Option<String>) -> Ran {
    let end = match exit {
        Exit::Status(_) => End::Exited,
        Exit::Signal(_) => End::Killed,
    };
    let finished = job.finish(Stop::Ended, Ending { end, exit_status: Some(exit.status()) });
    let mut lines = finished.map_or_else(|error| vec![error.to_string()], |summary| summary.lines);
    lines.extend(control_error.map(|error| format!("aggregator ctl did not work during this run: {error}")));
    Ran { status: exit.status(), lines }
}

/// From here on, what would have interrupted the command interrupts the writing of its snapshot.
fn interrupt_on_signals(interrupted: &Arc<AtomicBool>) -> io::Result<()> {
    interrupted.store(false, Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(interrupted))?;
    }
    Ok(())
}

/// What stands against tracing the command: an error when it is certain, a doubt otherwise.
fn find_obstacle(config: &RunConfig) -> Result<Option<String>, LaunchError> {
    let Some(program) = config.command.first().and_then(|name| elf::resolve(name)) else { return Ok(None) };
    match elf::examine(&program) {
        Some(obstacle) if obstacle.is_certain() => Err(LaunchError::Obstacle { program, obstacle }),
        obstacle => Ok(obstacle.map(|obstacle| format!("{} {}", program.display(), obstacle.reason()))),
    }
}

/// What is known of the program before it runs: enough for one that ends before it can be looked at.
fn launched(config: &RunConfig) -> Image {
    let program = config.command.first().and_then(|name| elf::resolve(name)).unwrap_or_default();
    let program = elf::interpreter(&program).unwrap_or(program);
    let program = std::fs::canonicalize(&program).unwrap_or(program);
    let words: Vec<_> = config.command.iter().map(|word| word.to_string_lossy()).collect();
    Image { number: 0, executable: program.to_string_lossy().into_owned(), command: words.join(" "), is_read: false }
}

fn command_name(config: &RunConfig) -> String {
    let name = config.command.first().and_then(|name| Path::new(name).file_name());
    name.map_or_else(|| "command".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// `heapline-<name>-<pid>.snap.zst`. A process gives itself any name, so what a shell or a terminal would take for more than a
/// name is left out.
pub fn default_output(name: &str, pid: u32) -> PathBuf {
    let is_plain = |c: char| !c.is_control() && c != '/';
    let name: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    PathBuf::from(format!("heapline-{name}-{pid}.snap.zst"))
}
