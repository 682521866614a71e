//! The tree's thread: receives reports of child processes, gives each child a tracer, and notices
//! the ends of children.

use super::socket::{Message, Socket};
use super::writers::{Reason, SnapshotWriters};
use super::{Order, ROOT, Root};
use crate::base::sys;
use crate::control;
use crate::control::Server;
use crate::job::Job;
use crate::job::tracer::{Plan, Tracer};
use crate::names::ProcessNames;
use crate::process::image::Image;
use crate::process::procfs;
use crate::process::tasks::Tasks;
use crate::session::Settings;
use crate::session::arena_map::ArenaMap;
use crate::snapshot::replaced::{Place, Spot};
use crate::snapshot::write::Folder;
use crate::table::fork_copies::{Born, Fork, ForkCopies, TreeMember};
use heapline_shared_format::arena::state;
use heapline_shared_format::snapshot;
use heapline_shared_format::snapshot::Begun;
use heapline_shared_format::tree::{Birth, Hello};
use std::collections::HashMap;
use std::io::{PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Limit of the processes traced at the same time or waiting to be written. Each process takes two
/// threads and about a megabyte.
const MAX_MEMBERS: usize = 1000;

/// Pause between two attempts to receive reports while the system refuses.
const BREATHER: Duration = Duration::from_millis(10);

/// Settings common to all children.
pub struct Common {
    /// Settings of the tracing.
    pub settings: Settings,
    /// Set to end the writing.
    pub interrupted: Arc<AtomicBool>,
}

/// A traced process.
struct Member {
    key: u64,
    /// Process id; 0 for a process not visible from here.
    pid: u32,
    process: Option<OwnedFd>,
    job: Arc<Job>,
    control: Option<(UnixListener, Server)>,
    /// Whether the member came after the last wait. The descriptors of the member may have numbers
    /// used by other descriptors during the wait.
    is_new: bool,
    /// Whether the process had ended before the aggregator received the report. The process may
    /// have sent more reports, which are received before the next wait.
    is_gone: bool,
}

/// A child process that may still ask for the inherited blocks.
struct Awaited {
    process: OwnedFd,
    fork: Fork,
    /// Whether the process came after the last wait.
    is_new: bool,
}

/// State of the tree's thread: the child processes and the ways to hear of them.
pub struct PendingChildren {
    socket: Socket,
    woken: PipeReader,
    orders: Receiver<Order>,
    copies: Arc<ForkCopies>,
    common: Common,
    writers: SnapshotWriters,
    members: Vec<Member>,
    awaited: Vec<Awaited>,
    /// The first process; known before there is a child.
    root: Arc<OnceLock<Root>>,
    /// Process ids of all children so far, by key.
    pids: HashMap<u64, u32>,
}

impl PendingChildren {
    /// Returns a state without children.
    pub fn new(
        socket: Socket,
        woken: PipeReader,
        orders: Receiver<Order>,
        root: Arc<OnceLock<Root>>,
        copies: Arc<ForkCopies>,
        common: Common,
        writers: SnapshotWriters,
    ) -> PendingChildren {
        let (members, awaited, pids) = (Vec::new(), Vec::new(), HashMap::new());
        PendingChildren { socket, woken, orders, copies, common, writers, members, awaited, root, pids }
    }

    /// Works until the order to finish comes.
    pub fn run(mut self) {
        loop {
            let ready = self.wait();
            // Reports are received before ends are noticed: a process may have sent a report before
            // its end.
            self.hear_all();
            let is_over = ready.contains(&self.woken.as_raw_fd()) && self.take_orders();
            self.notice_ends(&ready);
            if is_over {
                break;
            }
        }
        for member in std::mem::take(&mut self.members) {
            let has_ended = member.is_gone
                || member.process.as_ref().is_some_and(|process| sys::await_readable(process, Default::default()));
            self.retire(member, if has_ended { Reason::Ended } else { Reason::LetGo });
        }
        // A process waiting for a copy gets the copy, or learns that no copy comes. No more
        // children are accepted in the meantime.
        drop(self.socket);
        self.writers.finish();
    }

    /// Waits for an event. Returns the descriptors with an event.
    fn wait(&mut self) -> Vec<RawFd> {
        self.members.iter_mut().for_each(|member| member.is_new = false);
        self.awaited.iter_mut().for_each(|awaited| awaited.is_new = false);
        let members = self.members.iter().flat_map(|member| {
            let control = member.control.as_ref().map(|(listener, _)| listener.as_raw_fd());
            [member.process.as_ref().map(AsRawFd::as_raw_fd), control]
        });
        let awaited = self.awaited.iter().map(|awaited| awaited.process.as_raw_fd());
        let mut polled: Vec<libc::pollfd> = self
            .socket
            .descriptors()
            .chain([self.woken.as_raw_fd()])
            .chain(members.flatten())
            .chain(awaited)
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
            .collect();
        sys::poll(&mut polled);
        polled.iter().filter(|polled| polled.revents != 0).map(|polled| polled.fd).collect()
    }

    fn take_orders(&mut self) -> bool {
        // Reads the bytes of the known orders; further bytes wake the thread again.
        let _ = self.woken.read(&mut [0; 256]);
        let mut is_over = false;
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Born(born) => self.await_claim(born),
                Order::Finish => is_over = true,
            }
        }
        if is_over {
            self.hear_all();
        }
        is_over
    }

    /// Watches a child with a waiting copy, so that no copy is kept for an ended child.
    fn await_claim(&mut self, Born { fork, pid }: Born) {
        if !self.copies.is_waiting(fork) {
            return;
        }
        let parent = self.pid(fork.0);
        // A number from another namespace says nothing here. Copies for such children are dropped
        // when there are too many.
        let is_child = parent.is_some_and(|parent| procfs::parent(pid) == Some(parent));
        match sys::pidfd(pid) {
            Ok(process) if is_child => self.awaited.push(Awaited { process, fork, is_new: true }),
            // The child has ended, and its reports have been received.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                self.hear_all();
                self.copies.forgo(fork);
            }
            _ => {}
        }
    }

    fn notice_ends(&mut self, ready: &[RawFd]) {
        let is_ready = |fd: RawFd| ready.contains(&fd);
        let mut ended = Vec::new();
        let mut i = 0;
        while let Some(member) = self.members.get(i) {
            if member.is_gone {
                ended.push(self.members.swap_remove(i));
                continue;
            }
            if member.is_new {
                i += 1;
                continue;
            }
            if let Some((listener, server)) = &member.control
                && is_ready(listener.as_raw_fd())
                && let Ok((stream, _)) = listener.accept()
            {
                control::answer_apart(&member.job, stream, &server.clients());
            }
            if member.process.as_ref().is_some_and(|process| is_ready(process.as_raw_fd())) {
                ended.push(self.members.swap_remove(i));
            } else {
                i += 1;
            }
        }
        let copies = &self.copies;
        self.awaited.retain(|awaited| {
            let has_ended = !awaited.is_new && is_ready(awaited.process.as_raw_fd());
            if has_ended {
                copies.forgo(awaited.fork);
            }
            !has_ended && copies.is_waiting(awaited.fork)
        });
        ended.into_iter().for_each(|member| self.retire(member, Reason::Ended));
    }

    fn retire(&self, member: Member, reason: Reason) {
        let Member { job, control, .. } = member;
        drop(control);
        self.writers.end(job, reason);
    }

    fn hear_all(&mut self) {
        loop {
            match self.socket.receive() {
                Ok(Some(message)) => self.hear(message),
                Ok(None) => return,
                Err(error) => {
                    // For example, no descriptors are free. Descriptors become free as processes
                    // end.
                    tracing::warn!(%error, "cannot hear of child processes");
                    std::thread::sleep(BREATHER);
                    return;
                }
            }
        }
    }

    fn hear(&mut self, message: Message) {
        let hello = match Hello::parse(&message.bytes) {
            Ok(hello) if hello.token == self.socket.address.token => hello,
            Ok(_) => return tracing::warn!(pid = message.pid, "somebody guesses at the token"),
            Err(error) => {
                tracing::warn!(pid = message.pid, ?error, "no message of a child process");
                return self.writers.refuse();
            }
        };
        let is_ours = message.uid == sys::geteuid() || message.uid == 0 || self.pid(hello.parent).is_some();
        let Some(file) = message.file.filter(|_| is_ours) else {
            tracing::warn!(pid = message.pid, uid = message.uid, "not from the tree, or without its file");
            return self.writers.refuse();
        };
        let map = match ArenaMap::open(file) {
            Ok(map) => Arc::new(map),
            Err(error) => {
                tracing::warn!(pid = message.pid, %error, "no arena of a child process");
                return self.writers.refuse();
            }
        };
        if self.members.len() + self.writers.backlog() >= MAX_MEMBERS {
            let session = &map.arena().header().session;
            session.state.store(state::IDLE, Ordering::Release);
            session.epoch.fetch_add(1, Ordering::AcqRel);
            return self.writers.refuse();
        }
        // The first process was known before it ran.
        if let Some(folder) = self.root.get().map(|root| Arc::clone(&root.folder)) {
            self.welcome(&hello, message.pid, map, folder);
        }
    }

    fn welcome(&mut self, hello: &Hello<'_>, pid: u32, map: Arc<ArenaMap>, folder: Arc<Folder>) {
        let process = sys::pidfd(pid).ok().filter(|_| pid != 0);
        let before = self.members.iter().position(|member| member.key == hello.parent && member.pid == pid && pid != 0);
        let before = before.filter(|_| hello.birth == Birth::Exec).map(|place| self.members.swap_remove(place));
        let (mut origin, mut earlier) = self.origin(hello);
        if let Some(before) = before {
            // The same process now runs another program.
            let is_copy = before.job.origin().is_some_and(|(_, birth)| birth == snapshot::Birth::Fork);
            earlier = before.job.earlier() + u32::from(!is_copy);
            origin.0 = before.job.origin().map_or(origin.0, |(parent, _)| parent);
            self.retire(before, Reason::Replaced);
        }
        let fork = (hello.fork != 0).then_some((hello.parent, hello.fork));
        if let Some(fork) = fork.filter(|_| hello.birth == Birth::Exec) {
            self.copies.forgo(fork);
        }
        let seen = if pid == 0 { hello.pid } else { pid };
        let inherits = fork.filter(|_| hello.birth == Birth::Fork);
        inherits.into_iter().for_each(|fork| self.copies.want(fork));
        let member = TreeMember { copies: Arc::clone(&self.copies), key: hello.key, adopted: Some(inherits) };
        let names = ProcessNames::new(self.common.settings.names);
        names.set_process((pid != 0).then_some(pid));
        let plan = Plan {
            settings: self.common.settings,
            launched: image(hello, seen),
            begun: if hello.birth == Birth::Fork { Begun::Fork } else { Begun::Start },
            target: process.is_some().then(|| Tasks::of(pid)),
            replaced: None,
            member: Some(member),
            names,
        };
        let tracer = match Tracer::start(map, plan) {
            Ok(tracer) => tracer,
            Err(error) => {
                tracing::warn!(pid, %error, "a child process is not traced");
                return self.writers.refuse();
            }
        };
        self.pids.insert(hello.key, seen);
        let place = Place { spot: Spot::In(folder), pid: seen };
        let job = Job::of_child(tracer, place, origin, earlier, Arc::clone(&self.common.interrupted));
        // The arena contains all events of the process.
        let is_gone = process.is_none() && pid != 0;
        let control = if is_gone { None } else { bind(seen) };
        let (key, job) = (hello.key, Arc::new(job));
        self.members.push(Member { key, pid, process, job, control, is_new: true, is_gone });
    }

    /// Returns the process id of a key.
    fn pid(&self, key: u64) -> Option<u32> {
        if key == ROOT { self.root.get().map(|root| root.pid) } else { self.pids.get(&key).copied() }
    }

    fn origin(&self, hello: &Hello<'_>) -> ((u32, snapshot::Birth), u32) {
        let birth = match hello.birth {
            Birth::Fork => snapshot::Birth::Fork,
            Birth::Exec => snapshot::Birth::Exec,
        };
        ((self.pid(hello.parent).unwrap_or(0), birth), 0)
    }
}

fn bind(pid: u32) -> Option<(UnixListener, Server)> {
    let bound =
        control::bind(pid).inspect_err(|error| tracing::warn!(pid, %error, "aggregator ctl does not work")).ok()?;
    bound.0.set_nonblocking(true).ok()?;
    Some(bound)
}

/// Returns the program from the process's own report, and its file if the process `pid` still runs
/// the program.
fn image(hello: &Hello<'_>, pid: u32) -> Image {
    let words = hello.arguments.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect::<Vec<_>>();
    let executable = String::from_utf8_lossy(hello.executable);
    let executable = executable.strip_suffix(" (deleted)").unwrap_or(&executable).to_owned();
    let is_read = !executable.is_empty();
    let command = words.join(" ").trim_end().to_owned();
    let running = procfs::executable_and_file(pid).filter(|(running, _)| running == Path::new(&executable));
    let file = running.and_then(|(_, file)| file);
    Image { number: 0, executable, command, file, is_read }
}
