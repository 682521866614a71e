//! The socket of a running aggregator for requests. Only its own user and root may ask.

use super::protocol::{Change, Found, FoundLeaks, MAX_LINE, Reply, Request, Stats};
use super::{ControlError, places};
use crate::base::{private_dir, sys};
use crate::drain::Stop;
use crate::job::tracer::Tracer;
use crate::job::{Ending, Job, JobError};
use crate::leaks::{LeakError, scan};
use crate::questions::keeper::FoundBlock;
use crate::snapshot::cut::Figures;
use crate::snapshot::write::Destination;
use heapline_shared_format::snapshot::End;
use heapline_shared_format::text::size;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Limit of the wait for a client's line.
const PATIENCE: Duration = Duration::from_secs(5);

/// Limit of the delay of the aggregator's end by a client with an answer in progress. The client
/// may have asked for the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A served socket. Dropping the value removes the socket.
#[derive(Debug)]
pub struct Server {
    /// File of the socket; none for a socket without a file.
    path: Option<PathBuf>,
    /// Counts the clients: each client holds a copy.
    clients: Arc<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // A client with a refused connection also reports that no aggregator listens.
        self.path.iter().for_each(|path| drop(fs::remove_file(path)));
        let begun = Instant::now();
        while Arc::strong_count(&self.clients) > ONLY_OURS && begun.elapsed() < LAST_ANSWERS {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Count without any client: the server's own reference.
const ONLY_OURS: usize = 1;

/// Counts the clients with an answer in progress.
#[derive(Clone, Debug)]
pub struct Clients(Weak<()>);

impl Server {
    /// Returns the counter for an answering thread.
    pub fn clients(&self) -> Clients {
        Clients(Arc::downgrade(&self.clients))
    }
}

/// Serves the socket of a job on a new thread.
pub fn serve(job: &Arc<Job>) -> Result<Server, ControlError> {
    let (listener, server) = bind(job.pid())?;
    let system = |source| ControlError::System { path: server.path.clone().unwrap_or_default(), source };
    let (job, clients) = (Arc::clone(job), server.clients());
    let accept = move || listener.incoming().flatten().for_each(|stream| answer_apart(&job, stream, &clients));
    thread::Builder::new().name("control".to_owned()).spawn(accept).map_err(system)?;
    Ok(server)
}

/// Binds the socket of a process, for a caller that waits for clients on its own.
pub fn bind(pid: u32) -> Result<(UnixListener, Server), ControlError> {
    let folder = match private_dir::open() {
        Ok(folder) => folder,
        Err(error) => {
            let listener = places::bind_without_folder(pid).map_err(|_| error)?;
            return Ok((listener, Server { path: None, clients: Arc::new(()) }));
        }
    };
    let path = folder.join(format!("{pid}.sock"));
    let system = |source| ControlError::System { path: path.clone(), source };
    remove_stale(&path);
    // The socket has another name until it listens: a client that finds the final name gets an
    // answer. The arena has a single owner, so an existing socket belongs to an aggregator that is
    // gone.
    let early = path.with_extension(format!("{}.new", std::process::id()));
    let placed = || {
        let listener = UnixListener::bind(&early)?;
        fs::set_permissions(&early, fs::Permissions::from_mode(0o600))?;
        fs::rename(&early, &path)?;
        Ok(listener)
    };
    let listener = placed().map_err(|error| {
        // The first error matters, so the second error is ignored.
        let _ = fs::remove_file(&early);
        system(error)
    })?;
    Ok((listener, Server { path: Some(path), clients: Arc::new(()) }))
}

/// Removes the sockets of ended processes from the folder of this socket. The aggregators of these
/// processes were killed.
fn remove_stale(path: &Path) {
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    for socket in entries.into_iter().flatten().flatten().map(|entry| entry.path()) {
        let pid = socket.file_name().and_then(|name| name.to_str()?.split('.').next()?.parse::<u32>().ok());
        let is_ours = socket.extension().is_some_and(|extension| extension == "sock" || extension == "new");
        let is_gone = pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        // An invisible process may belong to another container with the same folder.
        if is_ours && is_gone && UnixStream::connect(&socket).is_err() {
            // Another aggregator may be faster.
            let _ = fs::remove_file(socket);
        }
    }
}

/// Answers a client on a thread of its own. A client without permission costs no thread: a socket
/// without a file has no mode that keeps other users away.
pub fn answer_apart(job: &Arc<Job>, stream: UnixStream, clients: &Clients) {
    if !sys::peer(&stream).is_ok_and(|(_, uid)| is_heard(uid)) {
        let refusal = Reply::Error("only the aggregator's own user and root may use its socket".to_owned());
        // A client that does not read the refusal already knows it.
        let _ = stream.set_nonblocking(true).and_then(|()| send(&stream, &refusal));
        return;
    }
    let (job, client) = (Arc::clone(job), clients.0.upgrade());
    let answer = move || {
        let _client = client;
        if let Err(error) = answer(&job, stream) {
            tracing::debug!(%error, "a client left");
        }
    };
    if let Err(error) = thread::Builder::new().name("client".to_owned()).spawn(answer) {
        tracing::warn!(%error, "no thread for a client");
    }
}

fn answer(job: &Job, stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = Vec::new();
    BufReader::new((&stream).take(MAX_LINE)).read_until(b'\n', &mut line)?;
    let reply = match Request::parse(&line) {
        Ok(request) => carry_out(job, &request, || sys::has_left(&stream)),
        Err(error) => Reply::Error(format!("the aggregator does not understand the request: {error}")),
    };
    send(&stream, &reply)
}

fn is_heard(uid: u32) -> bool {
    uid == 0 || uid == sys::geteuid()
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn carry_out(job: &Job, request: &Request, has_left: impl Fn() -> bool) -> Reply {
    let done = |text: &str| Reply::Done(vec![text.to_owned()]);
    let tracer = job.tracer();
    let result = match request {
        Request::Stats => {
            tracer.figures().map(|figures| Reply::Stats(Box::new(stats(job, &figures)))).map_err(JobError::from)
        }
        Request::Lookup { address } => {
            let described = |found: FoundBlock| Found::new(&found, tracer.names());
            tracer.lookup(*address).map(|found| Reply::Found(found.map(described))).map_err(JobError::from)
        }
        Request::Leaks { stop } => return leaks(job, *stop, has_left),
        Request::ResetPeak => {
            tracer.reset_peak().map(|()| done("the peak is now what is live")).map_err(JobError::from)
        }
        Request::Set(change) => return set(tracer, *change),
        Request::ClearTraces => {
            tracer.clear_traces().map(|()| done("all traces are forgotten")).map_err(JobError::from)
        }
        Request::Mark { text } => mark(tracer, text),
        Request::Pause { pauses } => {
            tracer.pause(*pauses).map(|changes| done(pause_text(*pauses, changes))).map_err(JobError::from)
        }
        Request::Snapshot { output } => snapshot(job, output, has_left),
        Request::Detach => {
            let ending = Ending { end: End::Detached, exit_status: None };
            job.finish(Stop::Detach, ending).map(|summary| Reply::Done(summary.lines))
        }
    };
    result.unwrap_or_else(|error| Reply::Error(error.to_string()))
}

fn stats(job: &Job, figures: &Figures) -> Stats {
    job.causes().look();
    figures.recorded.iter().for_each(|object| job.causes().is_recorded(object));
    // The modules are copied for snapshots only. For a running process, the modules are seen in its
    // mappings.
    let unseen = job.causes().of_program(&figures.image.executable, &[]);
    Stats::new(job.pid(), job.tracer().settings().nframe, figures, unseen, job.trace(figures))
}

/// Scans for lost blocks, unless another client's scan is under way.
fn leaks(job: &Job, stop: bool, has_left: impl Fn() -> bool) -> Reply {
    let (tracer, pid) = (job.tracer(), job.pid());
    let found = || {
        let Ok(_scan) = job.scan().try_lock() else { return Err(LeakError::Busy) };
        if job.has_stalled() {
            return Err(LeakError::Stalled);
        }
        let leaks = scan::scan(tracer, pid, stop, has_left)?;
        let command = tracer.figures()?.image.command;
        FoundLeaks::new(pid, command, &leaks, tracer.names(), |stacks| {
            tracer.frames(leaks.image, stacks)?.ok_or(LeakError::Ended)
        })
    };
    match found() {
        Ok(found) => Reply::Leaks(Box::new(found)),
        Err(error) => Reply::Error(format!("process {pid} was not scanned: {error}")),
    }
}

fn set(tracer: &Tracer, change: Change) -> Reply {
    if !tracer.samples() {
        let text = "everything is recorded, and what is live already is not sampled: begin with --sample BYTES";
        return Reply::Error(text.to_owned());
    }
    Reply::Done(vec![match change {
        Change::Sample(0) => return Reply::Error("one in 0 bytes cannot be: give a distance of samples".to_owned()),
        Change::Sample(bytes) => {
            if let Err(error) = tracer.set_interval(bytes) {
                return Reply::Error(error.to_string());
            }
            format!("one in {} is sampled, by each thread from its next sample on", size(bytes))
        }
        Change::SamplesPerSecond(n) => {
            if let Err(error) = tracer.set_rate(n) {
                return Reply::Error(error.to_string());
            }
            format!("the distance of samples is adapted to {n} samples a second")
        }
    }])
}

fn pause_text(pauses: bool, changes: bool) -> &'static str {
    match (pauses, changes) {
        (true, true) => "allocations do not count until ctl PID resume; frees do",
        (true, false) => "the tracing was paused already",
        (false, true) => "allocations count from now on",
        (false, false) => "the tracing was not paused",
    }
}

fn mark(tracer: &Tracer, text: &str) -> Result<Reply, JobError> {
    if tracer.settings().history.is_none() {
        return Ok(Reply::Error(
            "no history is recorded, and a mark has no place: trace without --no-history".to_owned(),
        ));
    }
    let text = text.trim();
    if text.is_empty() {
        return Ok(Reply::Error("a mark needs a text: ctl PID mark \"deploy 42\"".to_owned()));
    }
    tracer.mark(text.to_owned())?;
    Ok(Reply::Done(vec!["the mark is in the history".to_owned()]))
}

fn snapshot(job: &Job, output: &Path, has_left: impl Fn() -> bool) -> Result<Reply, JobError> {
    let destination = Destination::check(output)?;
    let line = job.snapshot(&destination, has_left)?;
    Ok(Reply::Done(vec![line]))
}
