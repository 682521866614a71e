//! `aggregator ctl`: one request to the aggregator of a process.

use super::protocol::{Found, Reply, Request, Stats};
use super::{ControlError, socket_path};
use crate::format::size;
use crate::outputs::default_output;
use crate::{procfs, sys};
use heapline_shared_format::arena::MEMFD_NAME;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long an aggregator gets to answer what it has in memory: a thread of the target that is held in the middle of
/// an event delays it by two seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to ask.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Numbers.
    Stats,
    /// A snapshot, to a file or to the default one.
    Snapshot(Option<PathBuf>),
    /// See tracemalloc.reset_peak.
    ResetPeak,
    /// See tracemalloc.clear_traces.
    ClearTraces,
    /// See tracemalloc.get_object_traceback.
    Lookup(u64),
    /// The end.
    Detach,
}

/// Asks the aggregator of process `pid`; returns what to print on standard output.
pub fn ask(pid: u32, what: Ask, json: bool) -> Result<String, ControlError> {
    let request = match what {
        Ask::Stats => Request::Stats,
        Ask::Snapshot(output) => {
            let name = procfs::name(pid).unwrap_or_else(|| "command".to_owned());
            let output = output.unwrap_or_else(|| default_output(&name, pid));
            let source = |source| ControlError::System { path: output.clone(), source };
            Request::Snapshot { output: std::path::absolute(&output).map_err(source)? }
        }
        Ask::ResetPeak => Request::ResetPeak,
        Ask::ClearTraces => Request::ClearTraces,
        Ask::Lookup(address) => Request::Lookup { address },
        Ask::Detach => Request::Detach,
    };
    let address = if let Request::Lookup { address } = request { address } else { 0 };
    match exchange(pid, &request)? {
        Reply::Error(text) => Err(ControlError::Refused(text)),
        Reply::Found(None) => Err(ControlError::NotLive { address }),
        Reply::Stats(stats) if json => encoded(&stats),
        Reply::Stats(stats) => Ok(stats_text(&stats)),
        Reply::Found(Some(found)) if json => encoded(&found),
        Reply::Found(Some(found)) => Ok(found_text(&found)),
        Reply::Done(lines) => Ok(lines.join("\n")),
    }
}

fn encoded(value: &impl serde::Serialize) -> Result<String, ControlError> {
    serde_json::to_string(value).map_err(|error| ControlError::Garbled(error.to_string()))
}

fn exchange(pid: u32, request: &Request) -> Result<Reply, ControlError> {
    let (mut stream, path) = connect(pid)?;
    let system = |source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ControlError::Silent { pid },
        _ => ControlError::System { path: path.clone(), source },
    };
    // Writing a snapshot takes as long as the disk does.
    let is_long = matches!(request, Request::Snapshot { .. } | Request::Detach);
    stream.set_read_timeout((!is_long).then_some(PATIENCE)).map_err(system)?;
    let mut line = encoded(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(system)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(system)?;
    serde_json::from_str(&line).map_err(|error| ControlError::Garbled(error.to_string()))
}

/// How long a process that carries the collector may be without an aggregator that answers: one that has just started
/// it opens its socket a moment later.
const STARTING: Duration = Duration::from_secs(1);

fn connect(pid: u32) -> Result<(UnixStream, PathBuf), ControlError> {
    let begun = Instant::now();
    loop {
        match connect_now(pid) {
            Err(ControlError::Nobody { .. }) if begun.elapsed() < STARTING && carries_collector(pid) => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn carries_collector(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(MEMFD_NAME))
}

fn connect_now(pid: u32) -> Result<(UnixStream, PathBuf), ControlError> {
    let own = sys::geteuid();
    // root may also ask an aggregator of the target's user.
    let others = procfs::uid(pid).filter(|&uid| own == 0 && uid != 0);
    for uid in [Some(own), others].into_iter().flatten() {
        let path = socket_path(uid, pid);
        match UnixStream::connect(&path) {
            Ok(stream) => return Ok((stream, path)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Its aggregator was killed. Whether it can be removed makes no difference here.
                let _ = fs::remove_file(&path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ControlError::System { path, source }),
        }
    }
    Err(ControlError::Nobody { pid })
}

fn stats_text(stats: &Stats) -> String {
    let session = &stats.snapshot;
    let mut lines = vec![format!("process {}: {}", session.pid, session.command)];
    lines.extend(stats.domains.iter().map(|domain| {
        format!(
            "{}: {} in {} blocks live, peak {}; {} allocations of {}, {} frees since the start",
            domain.domain,
            size(domain.current),
            domain.blocks,
            size(domain.peak),
            domain.allocs,
            size(domain.allocated_bytes),
            domain.frees,
        )
    }));
    lines.push(format!(
        "heapline itself: {} in the process, {} in the aggregator",
        size(stats.own.target_bytes),
        size(stats.own.aggregator_bytes)
    ));
    let lost: Vec<String> = session.lost.iter().map(|(cause, n)| format!("{n} {cause}")).collect();
    let lost = if lost.is_empty() { "none".to_owned() } else { lost.join(", ") };
    lines.push(format!(
        "lost: {lost}; contradictions: {}; untracked frees: {}",
        session.contradictions, session.untracked_frees
    ));
    lines.join("\n")
}

fn found_text(found: &Found) -> String {
    let mut lines = vec![
        format!(
            "{}: {} bytes ({}), allocated by thread {} ({})",
            found.address, found.size, found.domain, found.tid, found.thread
        ),
        "Traceback (most recent call last):".to_owned(),
    ];
    lines.extend(found.traceback.iter().map(|frame| match (frame.module.as_str(), frame.line, &frame.function) {
        (file, Some(line), Some(function)) => format!("  File \"{file}\", line {line}, in {function}"),
        ("", ..) => format!("  {}", frame.address),
        (module, ..) => format!("  {module}+{}", frame.offset),
    }));
    lines.join("\n")
}
