//! `aggregator --attach PID`: a process that runs already, with the collector in it, idle, or without any.

pub mod find;
pub mod inject;
mod presence;

use crate::base::sys;
use crate::control;
use crate::drain::Stop;
use crate::job::tracer::{Plan, TraceError, Tracer};
use crate::job::{Ending, Job, JobError};
use crate::process::elf::Obstacle;
use crate::process::image::Image;
use crate::process::procfs;
use crate::process::tasks::Tasks;
use crate::session::arena_map::{ArenaMap, ArenaMapError};
use crate::session::clock::Clock;
use crate::session::{DEFAULT_TARGET_MEMORY, Sampling, SessionError, Settings};
use crate::snapshot::names::Outputs;
use crate::snapshot::replaced;
use crate::snapshot::replaced::{Place, Spot};
use crate::snapshot::write::OutputError;
use crate::tree::Tree;
use heapline_shared_format::arena::SEGMENT_BYTES;
use heapline_shared_format::snapshot::End;
use inject::InjectError;
use presence::Presence;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Between two looks at what is not signalled: the control socket's detach, a target that has stopped tracing.
const LOOK: Duration = Duration::from_millis(100);

/// What to trace, and how.
#[derive(Clone, Debug)]
pub struct AttachConfig {
    /// The process.
    pub pid: u32,
    /// Where the snapshot goes.
    pub output: Option<PathBuf>,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Which samples to record; none to record everything.
    pub sampling: Option<Sampling>,
    /// Ceiling for the rings, in bytes.
    pub max_target_memory: u64,
    /// Detach after that long.
    pub duration: Option<Duration>,
    /// How long a thread is looked for that can be borrowed to bring the collector in.
    pub wait: Duration,
    /// Whether the processes that it starts from now on are traced too.
    pub follows: bool,
}

/// Why a process is not traced.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message says what each means")]
pub enum AttachError {
    #[error("there is no process {pid}: check the number")]
    NoProcess { pid: u32 },
    #[error("process {pid} belongs to user {owner}: attach as that user or as root")]
    OtherUser { pid: u32, owner: u32 },
    #[error("process {pid} has ended (a zombie): there is nothing left to trace")]
    Ended { pid: u32 },
    #[error("process {pid} is a thread of the kernel: only programs can be traced")]
    KernelThread { pid: u32 },
    #[error("{tid} is a thread of process {process}: attach to {process}")]
    Thread { tid: u32, process: u32 },
    #[error("process {pid} cannot be traced: it {}", obstacle.reason())]
    Obstacle { pid: u32, obstacle: Obstacle },
    #[error("process {pid} has no collector in it")]
    NoArena { pid: u32 },
    #[error("process {pid} cannot be attached to: {error}")]
    Inject { pid: u32, error: InjectError },
    #[error("process {pid} is being traced by {tracer} (process {by}): only one can, so end that first")]
    Traced { pid: u32, by: u32, tracer: String },
    #[error("process {pid} has closed the collector's descriptor, so only root can find it: attach as root")]
    Closed { pid: u32 },
    #[error(
        "process {pid} was forked from process {other} and has not begun to be traced: attach to {other} with --follow, \
         and it joins with its next allocation"
    )]
    Forked { pid: u32, other: u32 },
    #[error("cannot trace process {pid}: {error}")]
    Session { pid: u32, error: SessionError },
    #[error("cannot look into process {pid}: {source}")]
    System { pid: u32, source: io::Error },
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Arena(#[from] ArenaMapError),
    #[error(transparent)]
    Trace(TraceError),
    #[error(transparent)]
    Job(#[from] JobError),
}

/// Traces a process until it ends, the time is over, or the user detaches. Says on the way that it has begun; returns what
/// to say on standard error at the end.
pub fn attach(config: &AttachConfig, say: impl Fn(&str)) -> Result<Vec<String>, AttachError> {
    let pid = config.pid;
    let system = |source| AttachError::System { pid, source };
    find::check(pid)?;
    // Before anything else of it: a process that ends from now on is noticed, and so is another that gets its number.
    let process = sys::pidfd(pid).map_err(system)?;
    let name = procfs::name(pid).unwrap_or_else(|| "command".to_owned());
    let outputs = Outputs::check(config.output.as_deref(), &name, config.follows)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(system)?;
    }
    let presence = Presence::establish(config)?;
    if sys::await_readable(&process, Duration::ZERO) {
        return Err(AttachError::Ended { pid });
    }
    let traced = trace(config, &presence, outputs, process, &interrupted, say);
    let left = match &traced {
        // Another was faster: its hooks are not ours to undo.
        Err(AttachError::Session { error: SessionError::Taken { .. }, .. }) => None,
        _ => presence.leave(),
    };
    let mut lines = traced?;
    lines.extend(left);
    Ok(lines)
}

/// A session of a process in which the collector is.
fn trace(
    config: &AttachConfig,
    presence: &Presence,
    outputs: Outputs,
    process: OwnedFd,
    interrupted: &Arc<AtomicBool>,
    say: impl Fn(&str),
) -> Result<Vec<String>, AttachError> {
    let pid = config.pid;
    let system = |source| AttachError::System { pid, source };
    let map = Arc::clone(&presence.map);
    let tasks = Tasks::of(pid);
    let other = map.arena().header().target.pid.load(Ordering::Relaxed);
    if other != tasks.inner_pid() {
        return Err(AttachError::Forked { pid, other });
    }
    let place = Arc::new(OnceLock::new());
    let archive = replaced::start(Arc::clone(&place), Arc::clone(interrupted)).map_err(system)?;
    let settings = Settings {
        nframe: config.nframe,
        max_target_memory: config.max_target_memory,
        clock: Clock::of_this_machine(),
        sampling: config.sampling,
    };
    let follows = config.follows && outputs.can_follow();
    let (destination, folder) = outputs.settle(pid)?;
    let tree = follows.then(|| Tree::start(settings, Arc::clone(interrupted))).transpose().map_err(system)?;
    let tree = tree.zip(folder);
    let member = tree.as_ref().map(|(tree, _)| tree.root());
    let (launched, target, replaced) = (Image::default(), Some(tasks), Some(archive.clone()));
    let begun = Tracer::start(Arc::clone(&map), Plan { settings, launched, target, replaced, member });
    let tracer = begun.map_err(|error| match error {
        TraceError::Session(error) => AttachError::Session { pid, error },
        other => AttachError::Trace(other),
    })?;
    if let Some((tree, folder)) = &tree {
        tree.set_root(pid, Arc::clone(folder));
        tree.open(&map);
    }
    let place = place.get_or_init(|| Place { spot: Spot::File(destination), pid }).clone();
    let job = Job::new(tracer, place, archive, Arc::clone(interrupted), None).with_notes(presence.unseen());
    let job = Arc::new(job);
    let control = control::serve(&job);
    say(&presence.greeting());
    let (how, end) = wait(&job, config.duration, interrupted, |timeout| sys::await_readable(&process, timeout));
    // From here on a signal interrupts the writing.
    interrupted.store(false, Ordering::Relaxed);
    let mut lines = job.finish(how, Ending { end, exit_status: None })?.lines;
    lines.extend(tree.into_iter().flat_map(|(tree, folder)| tree.finish(folder.path())));
    lines.extend(clamped(config, &map));
    lines.extend(control.err().map(|error| format!("aggregator ctl did not work: {error}")));
    Ok(lines)
}

/// Waits for a reason to end.
fn wait(
    job: &Job,
    duration: Option<Duration>,
    interrupted: &AtomicBool,
    mut has_exited: impl FnMut(Duration) -> bool,
) -> (Stop, End) {
    let begun = Instant::now();
    let is_over = || duration.is_some_and(|duration| begun.elapsed() >= duration);
    loop {
        if has_exited(LOOK) {
            return (Stop::Ended, End::Exited);
        }
        if interrupted.load(Ordering::Relaxed) || is_over() || job.has_stalled() || job.is_finished() {
            return (Stop::Detach, End::Detached);
        }
    }
}

/// A larger ceiling than the process's arena has room for cannot be had any more.
fn clamped(config: &AttachConfig, map: &ArenaMap) -> Option<String> {
    let has = u64::from(map.arena().geometry().segments) * SEGMENT_BYTES as u64;
    let is_default = config.max_target_memory == DEFAULT_TARGET_MEMORY;
    (config.max_target_memory > has && !is_default).then(|| {
        format!(
            "the process was started with room for {has} bytes of records, so --max-target-memory has no more effect"
        )
    })
}
