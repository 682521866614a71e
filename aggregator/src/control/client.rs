//! `aggregator ctl`: sends a single request to the aggregator of a process.

use super::places::{self, Place};
use super::protocol::{Change, Found, FoundAt, FoundLeaks, LeakSum, Reply, Request, Stats};
use super::{ControlError, socket_path};
use crate::base::{private_dir, sys};
use crate::job::headline::noun;
use crate::process::procfs;
use crate::snapshot::names::default_output;
use heapline_shared_format::arena::MEMFD_NAME;
use heapline_shared_format::snapshot::{Domain, began_with};
use heapline_shared_format::text::{counted, printable, size};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Limit of the wait for an answer from memory. A target's thread held in the middle of an event
/// delays the answer by two seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest reply: the traceback of a block, at its deepest.
const MAX_REPLY: u64 = 64 << 20;

/// Requests of a user.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Numbers of the session.
    Stats,
    /// A snapshot, to a file or to the default file.
    Snapshot(Option<PathBuf>),
    /// See tracemalloc.reset_peak.
    ResetPeak,
    /// A change of the distance of samples.
    Set(Change),
    /// See tracemalloc.clear_traces.
    ClearTraces,
    /// See tracemalloc.get_object_traceback.
    Lookup(u64),
    /// The lost blocks; with all threads stopped, or while they run.
    Leaks {
        /// Whether all threads are stopped.
        stop: bool,
    },
    /// A mark in the history.
    Mark(String),
    /// A pause of the tracing, or the end of the pause.
    Pause(bool),
    /// The end of the session.
    Detach,
}

/// Sends a request to the aggregator of process `pid`. Returns the text for standard output.
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
        Ask::Set(change) => Request::Set(change),
        Ask::ClearTraces => Request::ClearTraces,
        Ask::Lookup(address) => Request::Lookup { address },
        Ask::Leaks { stop } => Request::Leaks { stop },
        Ask::Mark(text) => Request::Mark { text },
        Ask::Pause(pauses) => Request::Pause { pauses },
        Ask::Detach => Request::Detach,
    };
    let address = if let Request::Lookup { address } = request { address } else { 0 };
    match exchange(pid, &request)? {
        Reply::Error(text) => Err(ControlError::Refused(text)),
        Reply::Found(None) => Err(ControlError::NotLive { address }),
        Reply::Stats(stats) if json => encoded(&stats).map(|json| plain_json(&json)),
        Reply::Stats(stats) => Ok(stats_text(&stats)),
        Reply::Found(Some(found)) if json => encoded(&found).map(|json| plain_json(&json)),
        Reply::Found(Some(found)) => Ok(found_text(&found)),
        Reply::Leaks(leaks) if json => encoded(&leaks).map(|json| plain_json(&json)),
        Reply::Leaks(leaks) => Ok(leaks_text(&leaks)),
        Reply::Done(lines) => Ok(lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")),
    }
}

/// Whether an aggregator answers for process `pid` now.
pub fn is_answered(pid: u32) -> bool {
    connect_now(pid).is_ok()
}

pub(super) fn encoded(value: &impl serde::Serialize) -> Result<String, ControlError> {
    serde_json::to_string(value).map_err(|error| ControlError::Garbled(error.to_string()))
}

/// Escapes the control characters that JSON leaves unescaped. Such characters stand only inside
/// strings, so the document means the same.
pub(super) fn plain_json(json: &str) -> String {
    let plain = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(plain).collect()
}

fn exchange(pid: u32, request: &Request) -> Result<Reply, ControlError> {
    let (stream, path) = connect(pid)?;
    // Writing a snapshot takes as long as the disk needs, a scan as long as the memory is large.
    let is_long = matches!(request, Request::Snapshot { .. } | Request::Leaks { .. } | Request::Detach);
    exchange_over(stream, request, (!is_long).then_some(PATIENCE)).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ControlError::Silent { pid },
        io::ErrorKind::InvalidData => ControlError::Garbled(source.to_string()),
        _ => ControlError::System { path, source },
    })
}

/// Sends a request, and waits for the answer. Fails with `InvalidData` for an answer that is not
/// understood.
pub(super) fn exchange_over(
    mut stream: UnixStream,
    request: &Request,
    patience: Option<Duration>,
) -> io::Result<Reply> {
    stream.set_read_timeout(patience)?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    // For root, the other end may be a program of the target's user. The length of the answer is
    // therefore limited.
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_REPLY)).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Limit of the wait for a process with a collector, but without an answering aggregator. An
/// aggregator opens its socket a moment after the start of the process.
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
    procfs::mappings(pid).is_ok_and(|mut lines| lines.any(|line| line.contains(MEMFD_NAME)))
}

/// Connects to the aggregator of a process, without a wait for an aggregator that is just starting.
pub(super) fn connect_now(pid: u32) -> Result<(UnixStream, PathBuf), ControlError> {
    let own = sys::geteuid();
    // root may also ask an aggregator of the target's user.
    let others = procfs::uid(pid).filter(|&uid| own == 0 && uid != 0);
    let mut untrusted = None;
    for uid in [Some(own), others].into_iter().flatten() {
        // In a folder planted by another user, this user would answer.
        let usual = match private_dir::is_there(uid) {
            Ok(is_there) => is_there.then(|| Place::File(socket_path(uid, pid))),
            Err(error) => {
                untrusted.get_or_insert(error);
                None
            }
        };
        for place in usual.into_iter().chain(places::others(uid, pid)) {
            if let Some(stream) = connect_to(&place, uid)? {
                return Ok((stream, place.shown()));
            }
        }
    }
    Err(ControlError::Nobody { pid, untrusted })
}

/// Connects to a place. Returns none without a trusted listener.
fn connect_to(place: &Place, uid: u32) -> Result<Option<UnixStream>, ControlError> {
    let system = |source| ControlError::System { path: place.shown(), source };
    let stream = match place.connect() {
        Ok(stream) => stream,
        // The aggregator of this socket was killed. The socket file stays for the next aggregator
        // to replace. The replacement may have just happened.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) if matches!(place, Place::Name(_)) => return Ok(None),
        Err(error) => return Err(system(error)),
    };
    let (_, peer) = sys::peer(&stream).map_err(system)?;
    match place {
        _ if peer == uid || peer == 0 => Ok(Some(stream)),
        Place::File(_) => Err(ControlError::Impostor { path: place.shown(), peer }),
        // Any user may choose such a name.
        Place::Name(_) => Ok(None),
    }
}

/// Formats the numbers as text for people. Names chosen by the target are made harmless here, field
/// by field: a name must not look like a line of Heapline.
fn stats_text(stats: &Stats) -> String {
    let session = &stats.snapshot;
    let mut lines = vec![format!("process {}: {}", session.pid, printable(&session.command))];
    let is_sampled = session.sample_interval != 0;
    if is_sampled {
        lines.push(format!(
            "sampled, one in {}: live memory and peak are estimates; calls are exact",
            size(session.sample_interval)
        ));
    }
    lines.extend(session.unseen.iter().map(|cause| format!("not seen: {}", printable(&cause.sentence()))));
    let (trace, since) = (&session.trace, session.trace.begun.since());
    lines.extend(trace.inherited.as_ref().zip(trace.parent).map(|(blocks, parent)| began_with(blocks, parent)));
    lines.extend(stats.domains.iter().map(|domain| {
        let is_estimate = is_sampled && domain.domain.parse().is_ok_and(Domain::is_sampled);
        let about = if is_estimate { "about " } else { "" };
        format!(
            "{}: {about}{} in {about}{} live, peak {about}{}; {} of {}, {} {since}",
            printable(&domain.domain),
            size(domain.current),
            counted(domain.blocks, noun(&domain.domain)),
            size(domain.peak),
            counted(domain.allocs, "allocation"),
            size(domain.allocated_bytes),
            counted(domain.frees, "free"),
        )
    }));
    lines.push(format!(
        "heapline itself: {} in the process, {} in the aggregator",
        size(stats.own.target_bytes),
        size(stats.own.aggregator_bytes)
    ));
    let lost: Vec<String> = session.lost.iter().map(|(cause, n)| format!("{n} {}", printable(cause))).collect();
    let lost = if lost.is_empty() { "none".to_owned() } else { lost.join(", ") };
    lines.push(format!(
        "lost: {lost}; contradictions: {}; untracked frees: {}",
        session.contradictions, session.untracked_frees
    ));
    lines.join("\n")
}

/// Whether a function of the C library begins a program or a thread.
fn starts_a_program(function: &str) -> bool {
    matches!(function, "_start" | "start_thread" | "clone" | "clone3" | "__clone" | "__clone3")
        || function.starts_with("__libc_start_")
}

fn found_text(found: &Found) -> String {
    let mut lines = vec![
        format!(
            "{}: {} bytes ({}), allocated by thread {} ({})",
            printable(&found.address),
            found.size,
            printable(&found.domain),
            found.tid,
            printable(&found.thread)
        ),
        "Traceback (most recent call first):".to_owned(),
    ];
    lines.extend(traceback_lines(&found.traceback));
    lines.join("\n")
}

/// Formats the frames of a traceback, the most recent first, without the start of the program.
fn traceback_lines(traceback: &[FoundAt]) -> impl Iterator<Item = String> + '_ {
    let is_start = |frame: &&FoundAt| frame.function.as_deref().is_some_and(starts_a_program);
    let starts = traceback.iter().take_while(is_start).count();
    let shown = if starts == traceback.len() { traceback } else { &traceback[starts..] };
    shown.iter().rev().map(|frame| {
        let module = printable(&frame.module);
        let function = frame.function.as_deref().map(printable);
        match (frame.filename.as_deref().map_or(module, printable), frame.lineno.unwrap_or(0), function) {
            (file, line, Some(function)) if !file.is_empty() => {
                format!("  File \"{file}\", line {line}, in {function}")
            }
            (_, _, Some(function)) => format!("  {function} ({})", printable(&frame.address)),
            (file, ..) if file.is_empty() => format!("  {}", printable(&frame.address)),
            (file, ..) => format!("  {file}+{}", printable(&frame.offset)),
        }
    })
}

fn leaks_text(leaks: &FoundLeaks) -> String {
    let FoundLeaks { pid, passes, direct, indirect, live, .. } = leaks;
    let how = match leaks.stopped_us {
        Some(us) => format!("one pass with all threads stopped for {}.{} ms", us / 1000, us % 1000 / 100),
        None => format!("{passes} {} while the threads ran", if *passes == 1 { "pass" } else { "passes" }),
    };
    let amount = |sum: &LeakSum| format!("{} in {}", size(sum.bytes), counted(sum.blocks, "block"));
    let mut lines = vec![format!("process {pid}: {}", printable(&leaks.command)), how];
    lines.extend(leaks.partial.iter().map(|why| format!("partial: {}", printable(why))));
    lines.push(format!(
        "lost: {} directly, {} indirectly; of {} that are live",
        amount(direct),
        amount(indirect),
        amount(live)
    ));
    for (number, lost) in (1..).zip(&leaks.stacks) {
        let parts = [(lost.direct, "directly lost"), (lost.indirect, "held by lost blocks only")];
        let parts: Vec<String> =
            parts.iter().filter(|(sum, _)| sum.blocks > 0).map(|(sum, how)| format!("{} {how}", amount(sum))).collect();
        let holding = if lost.held.blocks > 0 { format!(", holding {}", amount(&lost.held)) } else { String::new() };
        lines.push(format!("#{number}: {}{holding}", parts.join(" and ")));
        lines.extend(traceback_lines(&lost.traceback));
    }
    lines.extend((leaks.stacks_left_out > 0).then(|| format!("and {} more stacks", leaks.stacks_left_out)));
    lines.join("\n")
}

/// Returns a reply in the form of [`ask`]. The fuzzer calls this function, without any aggregator.
pub fn shown(line: &[u8]) -> Option<String> {
    match serde_json::from_slice(line).ok()? {
        Reply::Stats(stats) => Some(stats_text(&stats)),
        Reply::Found(found) => found.map(|found| found_text(&found)),
        Reply::Leaks(leaks) => Some(leaks_text(&leaks)),
        Reply::Done(lines) => Some(lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")),
        Reply::Error(text) => Some(printable(&text).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_target_are_shown_and_do_nothing() {
        let reply = r#"{"found":{"address":"0x10","domain":"native","size":5,"tid":7,"thread":"a\u001b]0;x\u0007",
            "traceback":[{"address":"0x1","module":"/lib\n#1: fake","offset":"0x2"}],"total_nframe":1}}"#;
        let shown = shown(reply.as_bytes()).expect("a reply");
        assert_eq!(shown.lines().count(), 3);
        assert_eq!(plain_json("{\"a\":\"\u{7f}\u{9b}é\"}"), "{\"a\":\"\\u007f\\u009bé\"}");
        assert!(shown.contains(r"a\u{1b}]0;x\u{7}") && shown.contains(r"/lib\n#1: fake+0x2"), "{shown}");
    }
}
