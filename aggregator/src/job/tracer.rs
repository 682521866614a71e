//! A traced process: starts the threads of drain and table, passes questions on, and ends both
//! threads.

use crate::base::queue::queue;
use crate::drain::{Barrier, Controls, Drain, Outcome, Outlet, Stop};
use crate::names::ProcessNames;
use crate::process::image::Image;
use crate::process::tasks::Tasks;
use crate::questions::backlog::Source;
use crate::questions::keeper::{FoundBlock, FoundFrame, Keeper, KeeperPlan, RECYCLED_BUFFERS, Request, SharedKeeper};
use crate::questions::native::NativeCut;
use crate::session::arena_map::ArenaMap;
use crate::session::{Session, SessionError, Settings, rate};
use crate::snapshot::cut::{Cut, Figures};
use crate::snapshot::replaced::Replaced;
use crate::table::fork_copies::TreeMember;
use crossbeam_utils::sync::Unparker;
use heapline_shared_format::snapshot::Begun;
use heapline_shared_format::snapshot::history::USER_MARK;
use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Most messages between drain and table. With full batches the queue holds 4 MiB. Further records
/// wait in the rings, because copies outside of the caches cost more than they help.
const QUEUE_MESSAGES: usize = 32;
/// Most resolver threads. With more, the sums take the time, and only one thread updates the sums.
const MAX_RESOLVERS: usize = 4;

/// Environment variable with the number of resolvers, so that tests can have resolvers on any
/// machine.
const ENV_RESOLVERS: &str = "HEAPLINE_RESOLVERS";

/// Number of threads for looking up blocks, besides the table's own thread. 0 on machines without
/// spare cores.
fn resolvers() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let chosen = std::env::var(ENV_RESOLVERS).ok().and_then(|count| count.parse().ok());
    chosen.unwrap_or(cores / 4).min(MAX_RESOLVERS)
}

/// Reason why tracing did not start, or why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The session did not begin.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The system has no more threads.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A thread of the aggregator has ended too early.
    #[error("the aggregator has failed: its {0} thread is gone (please report this)")]
    Gone(&'static str),
}

/// Start parameters of a tracer.
pub struct Plan {
    /// Parameters of the session.
    pub settings: Settings,
    /// Program in the target, as far as known.
    pub launched: Image,
    /// Begin of the trace.
    pub begun: Begun,
    /// Threads of the target, if the target exists already.
    pub target: Option<Tasks>,
    /// Receiver of the cuts of programs replaced by exec in the same arena.
    pub replaced: Option<SyncSender<Replaced>>,
    /// Place of the process in the followed tree.
    pub member: Option<TreeMember>,
    /// Names of the process's frames.
    pub names: Arc<ProcessNames>,
}

/// Handle of the drain and of the table.
pub struct Tracer {
    settings: Settings,
    /// Wanted samples a second; 0 for a fixed distance.
    rate: Arc<AtomicU32>,
    controls: Arc<Controls>,
    requests: Mutex<mpsc::Sender<Request>>,
    keeper: Unparker,
    drain: Mutex<Drained>,
    map: Arc<ArenaMap>,
    names: Arc<ProcessNames>,
}

enum Drained {
    Running(JoinHandle<Outcome>),
    Over(Outcome),
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // The table's thread sleeps until it is woken, and must learn that no further request
        // comes.
        let (last, _) = mpsc::channel();
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner) = last;
        self.keeper.unpark();
    }
}

impl Tracer {
    /// Begins a session on an arena, or continues the session begun by a child process.
    pub fn start(map: Arc<ArenaMap>, plan: Plan) -> Result<Tracer, TraceError> {
        let Plan { settings, launched, begun, target, replaced, member, names } = plan;
        let is_adopted = member.as_ref().is_some_and(|member| member.adopted.is_some());
        let controls = Arc::new(Controls::new(Arc::clone(&map)));
        if let Some(tasks) = target {
            controls.set_target(tasks);
        }
        let old = match target {
            _ if is_adopted => None,
            Some(tasks) => Some(tasks.living().unwrap_or_default()),
            None => Some(BTreeSet::new()),
        };
        let (sender, messages) = queue(QUEUE_MESSAGES);
        let (to_drain, recycled) = rtrb::RingBuffer::new(RECYCLED_BUFFERS);
        let (requests, asked) = mpsc::channel();
        let waker = messages.waker();
        let (inlet, parker) = messages.split();
        // Many children may run at one time, so each child has a single thread for the table.
        let resolvers = if is_adopted { 0 } else { resolvers() };
        let threads = old.as_ref().map_or(0, BTreeSet::len);
        let source = Source::new(Arc::clone(&map));
        let names_of_process = Arc::clone(&names);
        let plan = KeeperPlan {
            nframe: settings.nframe,
            resolvers,
            begun,
            threads,
            replaced,
            member,
            names: names_of_process,
            history: settings.history,
            paused: settings.paused,
            tasks: controls.place_of_tasks(),
        };
        let shared = SharedKeeper::new(Keeper::new(source.clone(), plan, to_drain), inlet, asked);
        let outlet = Outlet::new(source.clone(), sender, recycled, shared.clone());
        let drain = start_drain(source, settings, old, launched, Arc::clone(&controls), outlet)?;
        let builder = thread::Builder::new().name("table".to_owned());
        builder.spawn(move || shared.run(&parker)).map_err(TraceError::Thread)?;
        let rate = Arc::new(AtomicU32::new(settings.sampling.and_then(|sampling| sampling.per_second).unwrap_or(0)));
        if map.arena().header().session.sample.load(Ordering::Relaxed) != 0 {
            rate::adapt(Arc::clone(&map), Arc::downgrade(&rate)).map_err(TraceError::Thread)?;
        }
        Ok(Tracer {
            settings,
            rate,
            controls,
            requests: Mutex::new(requests),
            keeper: waker,
            drain: Mutex::new(Drained::Running(drain)),
            map,
            names,
        })
    }

    /// Sets the target, once the process was started.
    pub fn set_target(&self, tasks: Tasks) {
        self.controls.set_target(tasks);
    }

    /// The arena.
    pub fn map(&self) -> &ArenaMap {
        &self.map
    }

    /// Names of the process's frames.
    pub fn names(&self) -> &ProcessNames {
        &self.names
    }

    /// Parameters of the session.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Returns the present sums and counters.
    pub fn figures(&self) -> Result<Figures, TraceError> {
        self.ask(|keeper| keeper.figures())
    }

    /// Returns a copy of the whole table.
    pub fn cut(&self) -> Result<Cut, TraceError> {
        self.ask(Keeper::cut)?.wait().ok_or(TraceError::Gone("table"))
    }

    /// Begins a copy of the native blocks.
    pub fn native(&self) -> Result<NativeCut, TraceError> {
        self.ask(Keeper::native)?.ok_or(TraceError::Gone("table"))
    }

    /// Begins a copy of the native blocks. None if the table does not come to this instant in time.
    pub fn native_within(&self, time: Duration) -> Result<Option<NativeCut>, TraceError> {
        match self.question(Keeper::native)?.recv_timeout(time) {
            Ok(cut) => cut.map(Some).ok_or(TraceError::Gone("table")),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(TraceError::Gone("table")),
        }
    }

    /// Whether native blocks of these addresses and stacks are live, in order.
    pub fn are_live(&self, blocks: Vec<(u64, u32)>) -> Result<Vec<bool>, TraceError> {
        self.ask(move |keeper| keeper.are_live(&blocks))
    }

    /// Returns the frames of stacks of program number `image`, the most recent frame first. None
    /// if the process runs another program now.
    pub fn frames(&self, image: u32, stacks: Vec<u32>) -> Result<Option<Vec<Vec<FoundFrame>>>, TraceError> {
        self.ask(move |keeper| {
            let frames = || stacks.into_iter().map(|stack| keeper.frames(stack)).collect();
            (keeper.image() == image).then(frames)
        })
    }

    /// Returns the live block at an address.
    pub fn lookup(&self, address: u64) -> Result<Option<FoundBlock>, TraceError> {
        self.ask(move |keeper| keeper.lookup(address))
    }

    /// Sets the peak to the amount that is live now.
    pub fn reset_peak(&self) -> Result<(), TraceError> {
        self.ask(Keeper::reset_peak)
    }

    /// Whether samples are recorded, instead of all blocks.
    pub fn samples(&self) -> bool {
        self.map.arena().header().session.sample.load(Ordering::Relaxed) != 0
    }

    /// Fixes the mean distance of samples, in bytes.
    pub fn set_interval(&self, bytes: u64) -> Result<(), TraceError> {
        self.rate.store(0, Ordering::Relaxed);
        self.map.arena().header().session.sample.store(bytes, Ordering::Relaxed);
        self.ask(move |keeper| keeper.mark("sampling", &format!("one in {bytes} bytes")))
    }

    /// Adapts the distance to this many samples a second; 0 keeps the present distance.
    pub fn set_rate(&self, per_second: u32) -> Result<(), TraceError> {
        self.rate.store(per_second, Ordering::Relaxed);
        self.ask(move |keeper| keeper.mark("sampling", &format!("{per_second} samples a second")))
    }

    /// Pauses the tracing, or resumes the tracing. Returns whether this changes anything.
    pub fn pause(&self, pauses: bool) -> Result<bool, TraceError> {
        self.ask(move |keeper| keeper.pause(pauses))
    }

    /// Puts a mark of the user into the history.
    pub fn mark(&self, text: String) -> Result<(), TraceError> {
        self.ask(move |keeper| keeper.mark(USER_MARK, &text))
    }

    /// Forgets all traces.
    pub fn clear_traces(&self) -> Result<(), TraceError> {
        self.ask(Keeper::clear_traces)
    }

    /// Ends tracing and waits until all records are in the table. The table still answers
    /// questions. Later calls return the first result.
    pub fn stop(&self, how: Stop) -> Result<Outcome, TraceError> {
        self.controls.stop(how);
        let mut drain = self.drain.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *drain, Drained::Over(Outcome::default()));
        let outcome = match before {
            Drained::Over(outcome) => outcome,
            Drained::Running(handle) => handle.join().map_err(|_| TraceError::Gone("drain"))?,
        };
        *drain = Drained::Over(outcome.clone());
        Ok(outcome)
    }

    /// Asks the keeper, and waits for the answer.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Keeper) -> T + Send + 'static,
    ) -> Result<T, TraceError> {
        self.question(question)?.recv().map_err(|_| TraceError::Gone("table"))
    }

    /// Asks the keeper. Returns the receiver of the answer.
    fn question<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Keeper) -> T + Send + 'static,
    ) -> Result<Receiver<T>, TraceError> {
        let (reply, answer) = mpsc::channel();
        let answer_with = move |keeper: &mut Keeper| {
            // Whoever asked may have left.
            let _ = reply.send(question(keeper));
        };
        let request = Request { asked: self.settings.clock.now(), answer: Box::new(answer_with) };
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.send(request).map_err(|_| TraceError::Gone("table"))?;
        drop(requests);
        self.keeper.unpark();
        self.controls.nudge();
        Ok(answer)
    }
}

/// Starts the drain's thread. The thread itself takes the arena over, because the kernel watches
/// over the owning thread. `old` are the thread ids of the target; none if the target has begun the
/// session by itself.
fn start_drain(
    source: Source,
    settings: Settings,
    old: Option<BTreeSet<u32>>,
    launched: Image,
    controls: Arc<Controls>,
    outlet: Outlet,
) -> Result<JoinHandle<Outcome>, TraceError> {
    let (began, begun) = mpsc::channel();
    let body = move || {
        let map = Arc::clone(&source.map);
        let session = match old {
            Some(living) => Session::begin(map, settings, &living),
            None => Session::adopt(map),
        };
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                let _ = began.send(Err(error));
                return Outcome::default();
            }
        };
        let drain = Drain::new(source, session, controls, outlet, Barrier::new(settings.clock), launched);
        let _ = began.send(Ok(()));
        drain.run()
    };
    let handle = thread::Builder::new().name("drain".to_owned()).spawn(body).map_err(TraceError::Thread)?;
    begun.recv().map_err(|_| TraceError::Gone("drain"))??;
    Ok(handle)
}
