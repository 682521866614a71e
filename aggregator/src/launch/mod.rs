//! `aggregator run`: runs a command, traced from its first instruction, and otherwise as if it ran
//! alone.

mod child;
pub mod inherited;
mod wait;

pub use child::StartError;

use crate::control;
use crate::drain::Stop;
use crate::job::tracer::{Plan, TraceError, Tracer};
use crate::job::{Ending, Job};
use crate::names::ProcessNames;
use crate::process::elf::Examined;
use crate::process::image::Image;
use crate::process::library::CollectorError;
use crate::process::tasks::Tasks;
use crate::process::{elf, library};
use crate::session::arena_map::{ArenaMap, ArenaMapError};
use crate::session::clock::Clock;
use crate::session::{Sampling, Settings};
use crate::snapshot::names::Outputs;
use crate::snapshot::replaced;
use crate::snapshot::replaced::{Place, Spot};
use crate::snapshot::write::{Folder, OutputError};
use crate::tree::Tree;
use child::{Command, Handed};
use heapline_shared_format::snapshot::{Begun, End};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use wait::{Exit, Signals};

/// Options of a run: the command, and the way to trace the command.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Name and arguments.
    pub command: Vec<OsString>,
    /// Path of the snapshot.
    pub output: Option<PathBuf>,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Whether functions and lines of frames are looked up.
    pub names: bool,
    /// Selection of the samples to record; none to record everything.
    pub sampling: Option<Sampling>,
    /// Ceiling for the rings, in bytes.
    pub max_target_memory: u64,
    /// Bound of the history in memory, in bytes; none for no history.
    pub history: Option<usize>,
    /// Whether the tracing begins with a pause.
    pub paused: bool,
    /// Whether to trace also the processes started by the command.
    pub follows: bool,
}

/// Reasons why the command was not run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each names the layer that it comes from")]
pub enum LaunchError {
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
    /// Returns the exit status by the convention of env(1) and timeout(1): 127 not found, 126 not
    /// executable, 125 otherwise.
    pub fn exit_status(&self) -> u8 {
        match self {
            LaunchError::Start(StartError::Exec { source, .. }) if source.kind() == io::ErrorKind::NotFound => 127,
            LaunchError::Start(StartError::Exec { .. }) => 126,
            _ => 125,
        }
    }
}

/// Result of a run.
#[derive(Debug)]
pub struct Ran {
    /// The command's exit status; 128 + N for signal N.
    pub status: i32,
    /// Lines for standard error.
    pub lines: Vec<String>,
}

/// Runs a command to its end, and writes its snapshot.
pub fn run(config: &RunConfig) -> Result<Ran, LaunchError> {
    let examined = elf::examine_command(&config.command);
    let name = command_name(config, examined.as_ref());
    let outputs = Outputs::check(config.output.as_deref(), &name, config.follows)?;
    let start = Start::of(examined.as_ref(), config.follows && outputs.can_follow());
    let doubt = examined.as_ref().and_then(doubt);
    let library = match start {
        Start::Untraced => None,
        _ => Some(library::install(folder_of_output(config).as_deref())?),
    };
    let map = Arc::new(ArenaMap::create(config.max_target_memory)?);
    let interrupted = Arc::new(AtomicBool::new(false));
    let place = Arc::new(OnceLock::new());
    let system = |what| move |source| LaunchError::System { what, source };
    let names = ProcessNames::new(config.names);
    let archive = replaced::start(Arc::clone(&place), Arc::clone(&names), Arc::clone(&interrupted))
        .map_err(system("start a thread"))?;
    let settings = Settings {
        nframe: config.nframe,
        max_target_memory: config.max_target_memory,
        clock: Clock::of_this_machine(),
        sampling: config.sampling,
        names: config.names,
        history: config.history,
        paused: config.paused,
    };
    let follows = config.follows && outputs.can_follow();
    let tree = follows.then(|| Tree::start(settings, Arc::clone(&interrupted))).transpose();
    let tree = tree.map_err(system("listen to child processes"))?;
    let member = tree.as_ref().map(Tree::root);
    let plan = Plan {
        settings,
        launched: launched(config, examined.as_ref()),
        begun: Begun::Start,
        target: None,
        replaced: Some(archive.clone()),
        member,
        names: Arc::clone(&names),
    };
    let tracer = Tracer::start(Arc::clone(&map), plan)?;
    if let Some(tree) = &tree {
        tree.open(&map);
    }
    let handed = match (&library, start) {
        (Some(collector), Start::Traced) => Handed::Arena { collector, map: &map },
        (Some(collector), Start::Launcher) => {
            tree.as_ref().map_or(Handed::Nothing, |tree| Handed::Way { collector, way: tree.way() })
        }
        _ => Handed::Nothing,
    };
    let command = Command::new(&config.command, &handed)?;
    let mut signals = Signals::take().map_err(system("take the signals over"))?;
    let child = command.fork()?;
    let pid = child.pid().unsigned_abs();
    tracer.set_target(Tasks::of(pid));
    names.set_process(Some(pid));
    let (destination, folder) = outputs.settle(pid)?;
    let tree = tree.zip(folder).inspect(|(tree, folder)| tree.set_root(pid, Arc::clone(folder)));
    let place = place.get_or_init(|| Place { spot: Spot::File(destination), pid }).clone();
    let job = Arc::new(Job::new(tracer, place, archive, Arc::clone(&interrupted), doubt));
    // Served before the command begins: a client that sees the command can ask about it.
    let control = control::serve(&job);
    let child_pid = child.pid();
    child.begin()?;
    let exit = signals.wait_for(child_pid).map_err(system("wait for the command"))?;
    interrupt_on_signals(&interrupted).map_err(system("take the signals over"))?;
    Ok(finish(&job, tree, exit, control.err().map(|error| error.to_string())))
}

fn finish(job: &Job, tree: Option<(Tree, Arc<Folder>)>, exit: Exit, control_error: Option<String>) -> Ran {
    let end = match exit {
        Exit::Status(_) => End::Exited,
        Exit::Signal(_) => End::Killed,
    };
    let finished = job.finish(Stop::Ended, Ending { end, exit_status: Some(exit.status()) });
    let mut lines = finished.map_or_else(|error| vec![error.to_string()], |summary| summary.lines);
    lines.extend(tree.into_iter().flat_map(|(tree, folder)| tree.finish(folder.path())));
    lines.extend(control_error.map(|error| format!("aggregator ctl did not work during this run: {error}")));
    Ran { status: exit.status(), lines }
}

/// Lets the signals that end a command interrupt the writing of the snapshot from here on.
fn interrupt_on_signals(interrupted: &Arc<AtomicBool>) -> io::Result<()> {
    interrupted.store(false, Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(interrupted))?;
    }
    Ok(())
}

/// Ways to start the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// With the collector and an arena.
    Traced,
    /// A static program that may start other programs. These find the collector in the environment,
    /// and each makes its own arena.
    Launcher,
    /// Without any additions.
    Untraced,
}

impl Start {
    /// Chooses the way to start. A program that cannot be traced runs as it is, and the summary
    /// names the reason.
    fn of(examined: Option<&Examined>, follows: bool) -> Start {
        match examined {
            Some(Examined { is_launcher: true, .. }) if follows => Start::Launcher,
            Some(Examined { obstacle: Some(obstacle), .. }) if obstacle.keeps_collector_out() => Start::Untraced,
            _ => Start::Traced,
        }
    }
}

/// Returns the reason why possibly nothing is recorded.
fn doubt(examined: &Examined) -> Option<String> {
    let Examined { program, obstacle, is_launcher } = examined;
    let reason = obstacle.as_ref()?.reason();
    let but = if *is_launcher { "; what it started is traced where that loads the collector" } else { "" };
    Some(format!("{} {reason}{but}", program.display()))
}

/// Returns the facts known about the program before it runs. They are enough for a program that
/// ends before the first look at its process.
fn launched(config: &RunConfig, examined: Option<&Examined>) -> Image {
    let program = examined.map(|examined| examined.program.clone()).unwrap_or_default();
    let program = std::fs::canonicalize(&program).unwrap_or(program);
    let words: Vec<_> = config.command.iter().map(|word| word.to_string_lossy()).collect();
    Image {
        number: 0,
        executable: program.to_string_lossy().into_owned(),
        command: words.join(" "),
        ..Image::default()
    }
}

/// Returns the folder of the snapshot, which this process can write to.
fn folder_of_output(config: &RunConfig) -> Option<PathBuf> {
    let output = config.output.as_deref().unwrap_or(Path::new("."));
    let output = std::path::absolute(output).ok()?;
    Some(if output.is_dir() { output } else { output.parent()?.to_owned() })
}

/// Returns the name for the snapshot: the command, or the program started by the command's loader.
fn command_name(config: &RunConfig, examined: Option<&Examined>) -> String {
    let command = config.command.first().map(Path::new);
    let loaded = examined.map(|examined| &*examined.program);
    let is_loader =
        command.and_then(|name| elf::resolve(name.as_os_str())).is_some_and(|path| elf::as_loader(&path).is_some());
    let name = if is_loader { loaded } else { command }.and_then(Path::file_name);
    name.map_or_else(|| "command".to_owned(), |name| name.to_string_lossy().into_owned())
}
