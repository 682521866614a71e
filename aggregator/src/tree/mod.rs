//! Traces the child processes of a traced process, each child with a tracer and a snapshot of its
//! own. A child reports itself with its arena, in a single message.
//!
//! ```text
//! child ──(message with the arena)──> tree thread ──> tracer and job of the child
//!                                       │ end of the child (pidfd)
//!                                       └──> writers ──> FOLDER/heapline-<name>-<pid>.snap.zst
//! ```
//!
//! A message is accepted only under two conditions:
//! 1. The message contains the tree's token.
//! 2. The sender is this user, root, or a child of a known process.
//!
//! The rest of the message is checked like all data from a target.

mod pending;
mod socket;
mod writers;

use crate::base::sys;
use crate::job;
use crate::session::Settings;
use crate::session::arena_map::ArenaMap;
use crate::snapshot::write::Folder;
use crate::table::fork_copies::{Born, ForkCopies, TreeMember};
use heapline_shared_format::arena::Geometry;
use heapline_shared_format::text::{counted, shell_word};
use heapline_shared_format::tree::{Address, WAY_BYTES, Way};
use pending::PendingChildren;
use socket::Socket;
use std::io::{self, PipeWriter, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use writers::{SnapshotWriters, Tally};

/// Key of the first process in every tree.
const ROOT: u64 = 1;

/// Messages to the tree's thread.
enum Order {
    /// A child has a waiting copy.
    Born(Born),
    /// No more processes are accepted. Running processes go on untraced.
    Finish,
}

/// The first process.
struct Root {
    pid: u32,
    /// Folder for the snapshots of the children.
    folder: Arc<Folder>,
}

/// Sender of orders, with the pipe to wake the thread.
#[derive(Clone)]
struct Orders {
    sender: Sender<Order>,
    wake: Arc<PipeWriter>,
}

impl Orders {
    fn send(&self, order: Order) {
        // An ended thread has already reported the reason.
        let _ = self.sender.send(order);
        let _ = (&*self.wake).write(&[0]);
    }
}

/// A tree of traced processes.
pub struct Tree {
    address: Address,
    settings: Settings,
    copies: Arc<ForkCopies>,
    orders: Orders,
    root: Arc<OnceLock<Root>>,
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
        let root = Arc::new(OnceLock::new());
        let pending = PendingChildren::new(
            socket,
            woken,
            receiver,
            Arc::clone(&root),
            Arc::clone(&copies),
            pending::Common { settings, interrupted },
            writers,
        );
        let thread = thread::Builder::new().name("tree".to_owned()).spawn(move || pending.run())?;
        Ok(Tree { address, settings, copies, orders, root, tally, thread })
    }

    /// Lets the children of the first process report themselves, once the session of this process
    /// has begun. `map` is the arena of the first process.
    pub fn open(&self, map: &ArenaMap) {
        self.way_of(0).open(&map.arena().header().tree, ROOT);
    }

    /// Returns the way for child programs of a first process without a collector, as text.
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

    /// Returns the place of the first process in the tree.
    pub fn root(&self) -> TreeMember {
        TreeMember { copies: Arc::clone(&self.copies), key: ROOT, adopted: None }
    }

    /// Notes the process id of the first process, which exists and will run. Snapshots of its
    /// children go to `folder`.
    pub fn set_root(&self, pid: u32, folder: Arc<Folder>) {
        sys::raise_descriptor_limit();
        // There is one first process.
        let _ = self.root.set(Root { pid, folder });
    }

    /// Ends the tree. Returns messages for the user. In order:
    /// 1. No more processes are accepted.
    /// 2. Running processes go on untraced.
    /// 3. The function waits until all snapshots are written to `folder`.
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
                "and {}{}{}{}: {folder}/; read all of them with: {} --tree {folder}",
                counted(written, "child process"),
                of(left, "of them still running, untraced from here on"),
                of(inexact, "of them NOT EXACT"),
                of(partial, "of them with memory that is not seen"),
                shell_word(&job::report_program().to_string_lossy()),
            ));
        }
        if refused > 0 {
            lines.push(format!(
                "not traced: {} (too many at one time, or of another version)",
                counted(refused, "child process")
            ));
        }
        lines.extend(errors);
        lines
    }
}
