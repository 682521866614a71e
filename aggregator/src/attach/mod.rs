//! `aggregator --attach PID`: traces a running process. The collector may be active there, idle, or
//! absent.

pub mod find;
pub mod inject;
mod presence;

use crate::base::sys;
use crate::control;
use crate::drain::Stop;
use crate::job::tracer::{Plan, TraceError, Tracer};
use crate::job::{Ending, Job, JobError};
use crate::names::ProcessNames;
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
use heapline_shared_format::snapshot::{Begun, End};
use heapline_shared_format::text::size;
use inject::InjectError;
use presence::Presence;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Interval between two looks at events without a signal: a detach by the control socket, or a
/// target without active tracing.
const LOOK: Duration = Duration::from_millis(100);

/// Options of an attach: the process, and the way to trace the process.
#[derive(Clone, Debug)]
pub struct AttachConfig {
    /// Number of the process to trace.
    pub pid: u32,
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
    /// Time until the aggregator detaches; none to stay attached.
    pub duration: Option<Duration>,
    /// Limit of the search for a thread to borrow. The borrowed thread brings the collector in.
    pub wait: Duration,
    /// Whether to trace also the processes started by the target from now on.
    pub follows: bool,
}

/// Reasons why a process is not traced.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message says what each means")]
pub enum AttachError {
    #[error("there is no process {pid}: check the number (a container sees the host's processes only with --pid=host)")]
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

/// Traces a process until the process ends, the time is over, or the user detaches. Calls `say`
/// when tracing has begun. Returns the final lines for standard error.
pub fn attach(config: &AttachConfig, say: impl Fn(&str)) -> Result<Vec<String>, AttachError> {
    let pid = config.pid;
    let system = |source| AttachError::System { pid, source };
    find::check(pid)?;
    // Opened first: a later end of the process is noticed, and so is another process under the same
    // number.
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
        // Another aggregator was faster: its hooks stay.
        Err(AttachError::Session { error: SessionError::Taken { .. }, .. }) => None,
        _ => presence.leave(),
    };
    let mut lines = traced?;
    lines.extend(left);
    Ok(lines)
}

/// Runs a session in a process with a collector.
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
    let names = ProcessNames::new(config.names);
    names.set_process(Some(pid));
    let archive = replaced::start(Arc::clone(&place), Arc::clone(&names), Arc::clone(interrupted)).map_err(system)?;
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
    let (destination, folder) = outputs.settle(pid)?;
    let tree = follows.then(|| Tree::start(settings, Arc::clone(interrupted))).transpose().map_err(system)?;
    let tree = tree.zip(folder);
    let member = tree.as_ref().map(|(tree, _)| tree.root());
    let (launched, target, replaced) = (Image::default(), Some(tasks), Some(archive.clone()));
    let plan = Plan { settings, launched, begun: Begun::Attach, target, replaced, member, names };
    let tracer = Tracer::start(Arc::clone(&map), plan).map_err(|error| match error {
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
    // From here on, a signal interrupts the writing of the snapshot.
    interrupted.store(false, Ordering::Relaxed);
    let mut lines = job.finish(how, Ending { end, exit_status: None })?.lines;
    lines.extend(tree.into_iter().flat_map(|(tree, folder)| tree.finish(folder.path())));
    lines.extend(clamped(config, &map));
    lines.extend(control.err().map(|error| format!("aggregator ctl did not work: {error}")));
    Ok(lines)
}

/// Waits for a reason to end the session.
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

/// Returns a note when the wanted ceiling is larger than the room in the arena of the process. The
/// arena cannot grow.
fn clamped(config: &AttachConfig, map: &ArenaMap) -> Option<String> {
    let has = u64::from(map.arena().geometry().segments) * SEGMENT_BYTES as u64;
    let is_default = config.max_target_memory == DEFAULT_TARGET_MEMORY;
    (config.max_target_memory > has && !is_default).then(|| {
        format!(
            "the process was started with room for {} of records, so --max-target-memory has no more effect",
            size(has)
        )
    })
}
