//! One traced process from start to snapshot: the common part of `run`, `--attach` and the control
//! socket.

pub mod headline;
pub mod trace;
pub mod tracer;

use crate::base::text;
use crate::drain::{Outcome, Stop};
use crate::job::tracer::{TraceError, Tracer};
use crate::process::elf;
use crate::snapshot::build::{About, build};
use crate::snapshot::cut::{Cut, Figures};
use crate::snapshot::replaced;
use crate::snapshot::replaced::{Archived, Place, Replaced, Spot};
use crate::snapshot::write::{Destination, OutputError};
use crate::table::said;
use crate::unseen::Causes;
use heapline_shared_format::arena::{end_cause, target_flag};
use heapline_shared_format::snapshot::{Birth, End, Snapshot, Unseen, mostly_mapped};
use heapline_shared_format::text::{counted, shell_word};
use std::env;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use trace::Trace;

/// Why a job did not end as it should.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JobError {
    /// The trace has failed.
    #[error("{0}")]
    Trace(#[source] Arc<TraceError>),
    /// The snapshot was not written.
    #[error("{0}")]
    Output(#[source] Arc<OutputError>),
    /// The thread for snapshots of replaced programs has ended before its time.
    #[error("the aggregator has failed: its archive thread is gone (please report this)")]
    ArchiveGone,
}

impl From<TraceError> for JobError {
    fn from(error: TraceError) -> JobError {
        JobError::Trace(Arc::new(error))
    }
}

impl From<OutputError> for JobError {
    fn from(error: OutputError) -> JobError {
        JobError::Output(Arc::new(error))
    }
}

/// State of the process at the end of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Kind of the end.
    pub end: End,
    /// Exit status, if known.
    pub exit_status: Option<i32>,
}

/// The report to the user at the end.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Lines for standard error, without a prefix.
    pub lines: Vec<String>,
    /// Whether no event was lost or contradictory, and tracing did not end early.
    pub is_exact: bool,
    /// Whether there is no known cause of unseen memory.
    pub is_complete: bool,
}

/// A traced process, and the places of the snapshots.
pub struct Job {
    tracer: Tracer,
    place: Place,
    /// Writer of programs replaced by exec in the same arena. None for a child: each program of a
    /// child has its own arena.
    archive: Option<SyncSender<Replaced>>,
    origin: Option<(u32, Birth)>,
    /// Number of earlier programs of the process with their own arenas.
    earlier: u32,
    interrupted: Arc<AtomicBool>,
    /// Begin of the tracing.
    since: SystemTime,
    /// Reason why the collector may not have been loaded, if known at the start.
    doubt: Option<String>,
    /// Notes for every snapshot about this way of tracing.
    notes: Vec<String>,
    causes: Causes,
    finished: Mutex<Option<Result<Summary, JobError>>>,
    /// Locked during a scan for lost blocks.
    scan: Mutex<()>,
}

impl Job {
    /// Returns a job for a running process. `doubt` explains a trace without records.
    pub fn new(
        tracer: Tracer,
        place: Place,
        archive: SyncSender<Replaced>,
        interrupted: Arc<AtomicBool>,
        doubt: Option<String>,
    ) -> Job {
        let (archive, causes) = (Some(archive), Causes::of(place.pid));
        Job {
            tracer,
            place,
            archive,
            origin: None,
            earlier: 0,
            interrupted,
            since: SystemTime::now(),
            doubt,
            notes: Vec::new(),
            causes,
            finished: Mutex::new(None),
            scan: Mutex::default(),
        }
    }

    /// Sets notes for every snapshot.
    pub fn with_notes(self, notes: Vec<String>) -> Job {
        Job { notes, ..self }
    }

    /// Returns a job for a child. `origin` is the parent and the kind of the birth. `earlier` is
    /// the number of traced programs run by the child before.
    pub fn of_child(
        tracer: Tracer,
        place: Place,
        origin: (u32, Birth),
        earlier: u32,
        interrupted: Arc<AtomicBool>,
    ) -> Job {
        let (origin, causes) = (Some(origin), Causes::of(place.pid));
        Job {
            tracer,
            place,
            archive: None,
            origin,
            earlier,
            interrupted,
            since: SystemTime::now(),
            doubt: None,
            notes: Vec::new(),
            causes,
            finished: Mutex::new(None),
            scan: Mutex::default(),
        }
    }

    /// The tracer.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Parent in the tree and kind of the birth, for a child.
    pub fn origin(&self) -> Option<(u32, Birth)> {
        self.origin
    }

    /// Begin of the trace and place of the snapshot, for clients of the control socket.
    pub fn trace(&self, figures: &Figures) -> Trace {
        let output = match &self.place.spot {
            Spot::File(destination) => destination.path(),
            Spot::In(folder) => folder.path(),
        };
        Trace {
            since: text::rfc3339(self.since),
            begun: figures.begun,
            parent: self.origin.map(|(parent, _)| parent),
            inherited: figures.inherited.clone(),
            output: std::path::absolute(output).unwrap_or_else(|_| output.to_owned()).to_string_lossy().into_owned(),
        }
    }

    /// Number of earlier programs of a child ([`Job::of_child`]).
    pub fn earlier(&self) -> u32 {
        self.earlier
    }

    /// Causes of unseen memory in the process. Callers add causes found later.
    pub fn causes(&self) -> &Causes {
        &self.causes
    }

    /// Process id of the target.
    pub fn pid(&self) -> u32 {
        self.place.pid
    }

    /// Whether the target has stopped tracing by itself.
    pub fn has_stalled(&self) -> bool {
        let cause = &self.tracer.map().arena().header().target.end_cause;
        cause.load(Ordering::Relaxed) != 0
    }

    /// Locked during a scan for lost blocks.
    pub fn scan(&self) -> &Mutex<()> {
        &self.scan
    }

    /// Whether the last snapshot was written.
    pub fn is_finished(&self) -> bool {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Writes a snapshot while the process goes on, unless `has_left` says that the asking client
    /// is gone. Returns a line for the user.
    pub fn snapshot(&self, destination: &Destination, has_left: impl Fn() -> bool) -> Result<String, JobError> {
        let cut = self.tracer.cut()?;
        let line = self.headline(&cut.figures, destination, None, true);
        self.causes.look();
        let is_over = || has_left() || self.interrupted.load(Ordering::Relaxed);
        let snapshot = self.build(cut, self.about(End::Running, None, Vec::new()), &is_over);
        destination.write_until(&snapshot, is_over)?;
        Ok(line)
    }

    /// Ends tracing and writes the last snapshot. Later calls return the first result.
    pub fn finish(&self, how: Stop, ending: Ending) -> Result<Summary, JobError> {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.get_or_insert_with(|| self.write_last(how, ending)).clone()
    }

    /// Writes the last state of a child's program after exec, if the next program has its own
    /// arena. A program begun by fork and ended by exec is not written, because it is no program of
    /// its own.
    pub fn replace(&self) -> Result<Summary, JobError> {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.get_or_insert_with(|| self.write_replaced()).clone()
    }

    fn write_replaced(&self) -> Result<Summary, JobError> {
        self.tracer.stop(Stop::Ended)?;
        self.write_earlier(self.tracer.cut()?)?;
        Ok(Summary { lines: Vec::new(), is_exact: true, is_complete: true })
    }

    fn write_earlier(&self, cut: Cut) -> Result<(), JobError> {
        if self.origin.is_some_and(|(_, birth)| birth == Birth::Fork) {
            return Ok(());
        }
        let n = self.earlier + 1;
        let destination = self.place.of(&cut.figures.image)?.replaced(n);
        let about = self.about(End::Exited, None, vec![replaced::note(n)]);
        Ok(destination.write(&self.build(cut, about, &|| self.is_interrupted()), &self.interrupted)?)
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Builds the snapshot, with the causes of unseen memory and the names of frames.
    fn build(&self, cut: Cut, about: About, is_over: &dyn Fn() -> bool) -> Snapshot {
        let image = cut.figures.image.number;
        cut.figures.recorded.iter().for_each(|object| self.causes.is_recorded(object));
        let left_out = cut.figures.left_out;
        let mut snapshot = build(cut, about);
        snapshot.meta.unseen = self.causes.of_program(&snapshot.meta.executable, &snapshot.modules);
        snapshot.meta.allocator = self.causes.malloc_of(&snapshot.meta.executable).map(str::to_owned);
        snapshot.meta.unseen.extend(said::unseen(left_out));
        self.tracer.names().fill(&mut snapshot, image, is_over);
        snapshot
    }

    fn about(&self, end: End, exit_status: Option<i32>, notes: Vec<String>) -> About {
        let notes = self.notes.iter().cloned().chain(notes).collect();
        About { pid: self.place.pid, end, exit_status, notes, origin: self.origin }
    }

    fn write_last(&self, how: Stop, ending: Ending) -> Result<Summary, JobError> {
        self.causes.look();
        let outcome = self.tracer.stop(how)?;
        let mut cut = self.tracer.cut()?;
        let mut lines = Vec::new();
        if let Some(untraced) = &outcome.untraced {
            let empty = cut.empty_for(untraced.clone());
            let traced = std::mem::replace(&mut cut, empty);
            match &self.archive {
                // Fails only if the archive's thread is gone, which the report below shows.
                Some(archive) => drop(archive.send(Replaced::Program(Box::new(|| Some(traced))))),
                None => self.write_earlier(traced)?,
            }
        }
        let archived = self.archived()?;
        let (end, mut notes) = self_ended(&outcome, ending.end);
        if cut.figures.records == 0 && !cut.figures.counts_calls() && notes.is_empty() {
            notes.push(self.why_nothing(&outcome, &cut, &archived));
        }
        if outcome.flags & target_flag::UNSEEN_REUSE != 0 {
            notes.push(UNSEEN_REUSE.to_owned());
        }
        self.add_causes(outcome.flags, &cut.figures.unseen);
        let figures = cut.figures.clone();
        let destination = self.place.of(&figures.image)?;
        let about = self.about(end, ending.exit_status, notes.clone());
        let snapshot = self.build(cut, about, &|| self.is_interrupted());
        destination.write(&snapshot, &self.interrupted)?;
        lines.push(self.headline(&figures, &destination, Some(ending), false));
        lines.extend(notes);
        let unseen = &snapshot.meta.unseen;
        lines.extend(unseen.iter().map(|cause| format!("NOT SEEN: {}", cause.sentence())));
        lines.extend(mostly_mapped(&figures.domains, figures.shown().domain, false, "this process's memory"));
        let losses = losses(&figures);
        let is_exact = losses.is_none() && outcome.end_cause == 0;
        lines.extend(losses);
        lines.extend(untold(&figures));
        lines.extend(archived.iter().filter_map(|program| program.error.clone()));
        lines.extend(replaced(&archived));
        Ok(Summary { lines, is_exact, is_complete: unseen.is_empty() })
    }

    fn headline(
        &self,
        figures: &Figures,
        destination: &Destination,
        ending: Option<Ending>,
        is_abroad: bool,
    ) -> String {
        let parent = self.origin.map(|(parent, _)| parent);
        headline::headline(figures, headline::About { path: destination.path(), ending, parent, is_abroad })
    }

    /// Adds causes of unseen memory known to the target's collector.
    fn add_causes(&self, flags: u32, unseen: &crate::snapshot::cut::Unseen) {
        let cause = |kind: &str, name: &str, text: &str| Unseen {
            kind: kind.to_owned(),
            object: String::new(),
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let unknown = unknown_python(flags);
        let pythons = [
            (target_flag::UNKNOWN_PYTHON, unknown.as_str()),
            (target_flag::LATE_PYTHON, LATE_PYTHON),
            (target_flag::OTHER_PYTHON, OTHER_PYTHON),
        ];
        for (_, text) in pythons.iter().filter(|(flag, _)| flags & flag != 0) {
            self.causes.add(cause("python", "Python's objects", text));
        }
        if unseen.foreign_places > 0 {
            let text = format!(
                "blocks are not recorded at {}: an allocator is called there that the collector cannot stand in front of",
                counted(unseen.foreign_places, "place")
            );
            self.causes.add(cause("allocator", "a second allocator", &text));
        }
        if unseen.unseen_starts > 0 {
            let text = format!(
                "blocks of constructors are not recorded in {}: opened past the collector (RTLD_DEEPBIND, dlmopen), or with an \
                 allocator in it",
                counted(unseen.unseen_starts, "library file")
            );
            self.causes.add(cause("constructors", "constructors of libraries opened past the collector", &text));
        }
    }

    fn archived(&self) -> Result<Vec<Archived>, JobError> {
        let Some(archive) = &self.archive else { return Ok(Vec::new()) };
        let (reply, report) = mpsc::channel();
        archive.send(Replaced::Report(reply)).map_err(|_| JobError::ArchiveGone)?;
        report.recv().map_err(|_| JobError::ArchiveGone)
    }

    fn why_nothing(&self, outcome: &Outcome, cut: &Cut, archived: &[Archived]) -> String {
        let program = &cut.figures.image.executable;
        let obstacle = |path: &str| elf::examine(Path::new(path)).map(|found| format!("{path} {}", found.reason()));
        let reason = if env::var_os("HEAPLINE_DISABLE").is_some_and(|value| value == "1") {
            "HEAPLINE_DISABLE=1 is set".to_owned()
        } else if outcome.flags & target_flag::NO_OBJECTS != 0 {
            "the program's C library does not say where its objects are".to_owned()
        } else if let Some(untraced) = &outcome.untraced {
            let known = obstacle(&untraced.executable);
            known.unwrap_or_else(|| "the program that exec began last did not load the collector".to_owned())
        } else if let Some(doubt) = &self.doubt {
            doubt.clone()
        } else if outcome.images == 0 {
            "the loader did not load the collector (neither glibc's nor musl's, or LD_PRELOAD was ignored), or the \
             program ended first"
                .to_owned()
        } else {
            obstacle(program).unwrap_or_else(|| "the program made no allocation while it was traced".to_owned())
        };
        let rest = if archived.iter().any(|program| program.records > 0) { " of the last program" } else { "" };
        let ranges = cut.figures.domains.iter().any(|sums| sums.domain.is_of_ranges());
        let but = if ranges { ", but what it mapped (report --domain mmap)" } else { "" };
        format!("NOTHING WAS RECORDED{rest}{but}: {reason}")
    }
}

/// Message about an interpreter that the collector does not know.
fn unknown_python(flags: u32) -> String {
    let which = match flags >> target_flag::UNKNOWN_MINOR {
        minor @ (..9 | 16..) if minor > 0 => format!("the interpreter is CPython 3.{minor}, and 3.9 to 3.15 are known"),
        _ => "the interpreter's structures are not those of CPython 3.9 to 3.15".to_owned(),
    };
    format!("Python's own blocks were not recorded: {which}; its native memory was (--domain native)")
}

const LATE_PYTHON: &str = "Python's own blocks were not recorded: it was brought in by a dlopen that the collector did not see, and \
    ran when it was found; its native memory was (--domain native), and aggregator --attach PID sees the rest";

const OTHER_PYTHON: &str = "a second Python library began in this process: the blocks of the first are recorded, of the second only the \
    native memory (--domain native)";

const UNSEEN_REUSE: &str = "Python's objects in blocks from its free lists are blamed on the line that asked for the block: \
    new objects are heard of where aggregator run starts a CPython 3.9 to 3.15 and records everything";

/// Returns a path for pasting into a shell: relative if the path is below the current directory.
pub fn shown(path: &Path) -> String {
    let relative = env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    let path = relative.filter(|relative| relative.components().next().is_some()).unwrap_or_else(|| path.to_owned());
    shell_word(&path.to_string_lossy())
}

/// Path of `report` beside this program, if there is such a file.
pub fn report_program() -> PathBuf {
    let beside = env::current_exe().ok().map(|own| own.with_file_name("report"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("report"))
}

/// Names the snapshots of programs replaced by exec.
fn replaced(archived: &[Archived]) -> Option<String> {
    let mut written = archived.iter().filter(|program| program.error.is_none());
    let first = shown(written.next()?.destination.path());
    Some(match written.next_back() {
        None => format!("exec replaced an earlier program; its snapshot: {first}"),
        Some(last) => {
            format!(
                "exec replaced {} earlier programs; their snapshots: {first} to {}",
                archived.len(),
                shown(last.destination.path())
            )
        }
    })
}

fn self_ended(outcome: &Outcome, end: End) -> (End, Vec<String>) {
    let why = match outcome.end_cause {
        0 => return (end, Vec::new()),
        end_cause::STALLED => "the aggregator made no progress for a second while a thread waited for room",
        end_cause::ORPHANED => "the target found no aggregator",
        end_cause::PANIC => "the collector failed (please report this)",
        end_cause::CLOCK => "the program switched its time-stamp counter off",
        _ => "of an unknown cause",
    };
    (End::Stalled, vec![format!("TRACING ENDED EARLY: {why}; the numbers are those of that moment")])
}

fn untold(figures: &Figures) -> Option<String> {
    let n = figures.untold;
    (n > 0).then(|| {
        format!("{n} of its child processes could not be followed (closed in, or by system() beside other threads)")
    })
}

fn losses(figures: &Figures) -> Option<String> {
    let lost = figures.lost.iter().map(|(cause, &n)| format!("{} lost ({cause})", counted(n, "event")));
    let mut counts: Vec<String> = lost.collect();
    let contradictions = figures.contradictions.by_name();
    counts.extend(contradictions.iter().map(|(kind, &n)| format!("{} ({kind})", counted(n, "contradiction"))));
    (!counts.is_empty()).then(|| format!("NOT EXACT: {}", counts.join(", ")))
}
