//! The processes that a traced one starts, each traced in its own right.
//!
//! ```text
//! child ──(arena, in one message)──> tree thread  ──> a tracer and a job of its own
//!                                        │ its end (pidfd)
//!                                        └──> writers ──> FOLDER/heapline-<name>-<pid>.snap.zst
//! ```
//!
//! A message is believed when it knows the tree's token and comes from our user, from root, or from
//! a child of a process that is known. The rest of it is checked as all that comes from a target
//! is.

mod pending;
mod socket;
mod writers;

use crate::base::text;
use crate::job;
use crate::session::Settings;
use crate::session::arena_map::ArenaMap;
use crate::snapshot::write::Folder;
use crate::table::fork_copies::{Born, ForkCopies, TreeMember};
use heapline_shared_format::arena::Geometry;
use heapline_shared_format::tree::{Address, WAY_BYTES, Way};
use pending::PendingChildren;
use socket::Socket;
use std::io::{self, PipeWriter, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use writers::{SnapshotWriters, Tally};

/// The first process in every tree.
const ROOT: u64 = 1;

/// What the tree's thread is told.
enum Order {
    /// A child has a copy waiting.
    Born(Born),
    /// The first process is this one; snapshots of its children go there.
    Root(u32, Arc<Folder>),
    /// No more processes are taken; those that run are let go.
    Finish,
}

/// Orders, and what wakes the thread for them.
#[derive(Clone)]
struct Orders {
    sender: Sender<Order>,
    wake: Arc<PipeWriter>,
}

impl Orders {
    fn send(&self, order: Order) {
        // A thread that is gone has said why.
        let _ = self.sender.send(order);
        let _ = (&*self.wake).write(&[0]);
    }
}

/// See the module.
pub struct Tree {
    address: Address,
    settings: Settings,
    copies: Arc<ForkCopies>,
    orders: Orders,
    tally: Arc<Mutex<Tally>>,
    thread: JoinHandle<()>,
}

impl Tree {
    /// Begins to listen.
    pub fn start(settings: Settings, interrupted: Arc<AtomicBool>) -> io::Result<Tree> {
        let socket = Socket::open()?;
        let address = socket.address;
        let (woken, wake) = io::pipe()?;
        let (sender, receiver) = mpsc::channel();
        let orders = Orders { sender, wake: Arc::new(wake) };
        let copies = {
            let orders = orders.clone();
            Arc::new(ForkCopies::new(move |born| orders.send(Order::Born(born))))
        };
        let tally = Arc::new(Mutex::new(Tally::default()));
        let writers = SnapshotWriters::start(Arc::clone(&tally))?;
        let pending = PendingChildren::new(
            socket,
            (woken, receiver),
            Arc::clone(&copies),
            pending::Common { settings, interrupted },
            writers,
        );
        let thread = thread::Builder::new().name("tree".to_owned()).spawn(move || pending.run())?;
        Ok(Tree { address, settings, copies, orders, tally, thread })
    }

    /// Lets the children of the process with this arena report themselves, once its session has
    /// begun. It is the first one.
    pub fn open(&self, map: &ArenaMap) {
        self.way_of(0).open(&map.arena().header().tree, ROOT);
    }

    /// The way for what the first process starts without a collector in itself, as text.
    pub fn way(&self) -> String {
        let mut text = [0; WAY_BYTES];
        let n = self.way_of(ROOT).write(&mut text);
        String::from_utf8_lossy(&text[..n]).into_owned()
    }

    fn way_of(&self, parent: u64) -> Way {
        let segments = Geometry::for_memory(self.settings.max_target_memory).segments;
        let (nframe, clock) = (self.settings.nframe, self.settings.clock.code());
        let sample = self.settings.sampling.map_or(0, |sampling| sampling.interval);
        Way { address: self.address, parent, fork: 0, segments, nframe, clock, sample }
    }

    /// The first process's place.
    pub fn root(&self) -> TreeMember {
        TreeMember { copies: Arc::clone(&self.copies), key: ROOT, adopted: None }
    }

    /// The first process is there, and will run. Snapshots of its children go to `folder`.
    pub fn set_root(&self, pid: u32, folder: Arc<Folder>) {
        self.orders.send(Order::Root(pid, folder));
    }

    /// Takes no more processes, lets those go that still run, and waits until all snapshots are
    /// written to `folder`. What there is to say.
    pub fn finish(self, folder: &Path) -> Vec<String> {
        self.orders.send(Order::Finish);
        if self.thread.join().is_err() {
            return vec!["following child processes has failed (please report this)".to_owned()];
        }
        let tally = std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner));
        tally.lines(folder)
    }
}

impl Tally {
    fn lines(self, folder: &Path) -> Vec<String> {
        let Tally { written, inexact, partial, left, refused, errors } = self;
        let mut lines = Vec::new();
        let folder = job::shown(folder);
        if written > 0 {
            let of = |n: u64, what: &str| if n > 0 { format!(", {n} {what}") } else { String::new() };
            lines.push(format!(
                "and {written} child {}{}{}{}: {folder}/; read all of them with: {} --tree {folder}",
                if written == 1 { "process" } else { "processes" },
                of(left, "of them still running, untraced from here on"),
                of(inexact, "of them NOT EXACT"),
                of(partial, "of them with memory that is not seen"),
                text::shell_word(&job::report_program().to_string_lossy()),
            ));
        }
        if refused > 0 {
            lines.push(format!(
                "{refused} child processes were not traced: too many at one time, or of another version"
            ));
        }
        lines.extend(errors);
        lines
    }
}
