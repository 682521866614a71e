//! The protocol of the control socket: a single line of JSON in each direction.

use crate::base::text::rfc3339;
use crate::job::trace::Trace;
use crate::leaks::heap::Doubt;
use crate::leaks::scan::{Kind, Leaks};
use crate::leaks::verdict::{Lost, Sum};
use crate::names::ProcessNames;
use crate::process::procfs;
use crate::questions::keeper::{FoundBlock, FoundFrame, FoundObject};
use crate::snapshot::cut::Figures;
use heapline_shared_format::snapshot::{DomainTotals, Unseen, mode_name};
use heapline_symbols::Location;
use heapline_symbols::plumbing::{self, Part};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Longest line, in bytes: more than any path.
pub const MAX_LINE: u64 = 64 * 1024;

/// Requests of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Asks for the numbers.
    Stats,
    /// Asks for a snapshot.
    Snapshot {
        /// Absolute path of the snapshot.
        output: PathBuf,
    },
    /// Sets the peak to the current live bytes.
    ResetPeak,
    /// Forgets all traces.
    ClearTraces,
    /// Changes a setting during the session.
    Set(Change),
    /// Asks for the live block at an address.
    Lookup {
        /// The address.
        address: u64,
    },
    /// Asks for the lost blocks.
    Leaks {
        /// Whether all threads are stopped meanwhile.
        stop: bool,
    },
    /// Puts a mark into the history.
    Mark {
        /// Text of the mark.
        text: String,
    },
    /// Lets allocations count no more, or count again.
    Pause {
        /// Whether the tracing pauses; otherwise the tracing resumes.
        pauses: bool,
    },
    /// Ends the tracing, and writes the last snapshot.
    Detach,
}

/// A change of a setting, for [`Request::Set`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// The mean distance of samples, in bytes.
    Sample(u64),
    /// The number of samples per second, to which the distance is adapted.
    SamplesPerSecond(u32),
}

impl Request {
    /// Parses the request in a line.
    pub fn parse(line: &[u8]) -> Result<Request, serde_json::Error> {
        serde_json::from_slice(line)
    }
}

/// Answers of the aggregator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Answer to [`Request::Stats`].
    Stats(Box<Stats>),
    /// Answer to [`Request::Lookup`].
    Found(Option<Found>),
    /// Answer to [`Request::Leaks`].
    Leaks(Box<FoundLeaks>),
    /// Answer to the other requests: a report of the work done.
    Done(Vec<String>),
    /// Error: the request was not carried out.
    Error(String),
}

/// The numbers, in the JSON form of `docs/formats.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub snapshot: Session,
    pub domains: Vec<DomainStats>,
    pub own: Own,
}

/// The part of [`Stats`] about the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub pid: u32,
    pub command: String,
    pub taken_at: String,
    pub mode: String,
    #[serde(default)]
    pub unseen: Vec<Unseen>,
    /// An older aggregator says nothing of the trace.
    #[serde(default)]
    pub trace: Trace,
    pub sample_interval: u64,
    pub nframe: u32,
    pub lost: BTreeMap<String, u64>,
    pub contradictions: u64,
    pub untracked_frees: u64,
}

/// The part of [`Stats`] about a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainStats {
    pub domain: String,
    pub current: u64,
    pub peak: u64,
    pub blocks: u64,
    pub allocs: u64,
    pub frees: u64,
    pub allocated_bytes: u64,
}

/// The part of [`Stats`] about Heapline's own use of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    pub target_bytes: u64,
    pub aggregator_bytes: u64,
    /// Answered questions of the program's `tracemalloc`.
    pub tracemalloc_queries: u64,
}

/// A live block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub address: String,
    pub domain: String,
    pub size: u64,
    pub tid: u32,
    pub thread: String,
    /// Frames of the traceback, the oldest frame first.
    pub traceback: Vec<FoundAt>,
    pub total_nframe: u16,
}

/// A frame of a live block's traceback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundAt {
    /// Return address; empty for a Python frame.
    pub address: String,
    /// Path of the object; the file of a Python frame; empty for code outside of any object.
    pub module: String,
    /// Address within the object, in the form for addr2line; empty for a Python frame.
    pub offset: String,
    /// Source file of a native frame, if known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub filename: Option<String>,
    /// Line in the source file, if known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lineno: Option<u32>,
    /// Function, if known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub function: Option<String>,
}

/// Lost blocks, in the JSON form of `docs/formats.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundLeaks {
    pub pid: u32,
    pub command: String,
    /// Passes over the memory.
    pub passes: u32,
    /// Time for which all threads were stopped, in microseconds; none if they ran.
    pub stopped_us: Option<u64>,
    /// Reasons why some blocks were not judged.
    pub partial: Vec<String>,
    /// Live blocks that were judged.
    pub live: LeakSum,
    pub direct: LeakSum,
    pub indirect: LeakSum,
    /// Lost blocks by traceback: the most directly lost bytes first.
    pub stacks: Vec<LostAt>,
    /// Tracebacks without a row in `stacks`.
    pub stacks_left_out: u64,
}

/// A number of blocks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakSum {
    pub bytes: u64,
    pub blocks: u64,
}

impl From<Sum> for LeakSum {
    fn from(Sum { bytes, blocks }: Sum) -> LeakSum {
        LeakSum { bytes, blocks }
    }
}

/// Lost blocks of a traceback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostAt {
    pub direct: LeakSum,
    pub indirect: LeakSum,
    /// Indirectly lost blocks of any traceback, held by the directly lost blocks of this one.
    pub held: LeakSum,
    /// Frames, the oldest frame first.
    pub traceback: Vec<FoundAt>,
}

/// Most tracebacks of an answer.
const MOST_STACKS: usize = 1000;

impl FoundLeaks {
    /// Describes the lost blocks of a process. `frames_of` finds the frames of stacks.
    pub fn new<E>(
        pid: u32,
        command: String,
        leaks: &Leaks,
        names: &ProcessNames,
        frames_of: impl FnOnce(Vec<u32>) -> Result<Vec<Vec<FoundFrame>>, E>,
    ) -> Result<FoundLeaks, E> {
        let mut found = FoundLeaks {
            pid,
            command,
            passes: 1,
            partial: leaks.doubts.iter().map(Doubt::sentence).collect(),
            live: leaks.judged.into(),
            ..FoundLeaks::default()
        };
        match leaks.kind {
            Kind::Passes(passes) => found.passes = passes,
            Kind::Stopped(time) => found.stopped_us = Some(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        }
        let (mut direct, mut indirect) = (Sum::default(), Sum::default());
        for lost in leaks.lost.values() {
            direct += lost.direct;
            indirect += lost.indirect;
        }
        (found.direct, found.indirect) = (direct.into(), indirect.into());
        let mut rows: Vec<(u32, Lost)> = leaks.lost.iter().map(|(&stack, &lost)| (stack, lost)).collect();
        rows.sort_by_key(|(stack, lost)| (Reverse((lost.direct, lost.held, lost.indirect)), *stack));
        found.stacks_left_out = rows.len().saturating_sub(MOST_STACKS) as u64;
        rows.truncate(MOST_STACKS);
        let frames = frames_of(rows.iter().map(|&(stack, _)| stack).collect())?;
        found.stacks = rows
            .iter()
            .zip(tracebacks(&frames, leaks.image, names))
            .map(|((_, lost), traceback)| LostAt {
                direct: lost.direct.into(),
                indirect: lost.indirect.into(),
                held: lost.held.into(),
                traceback,
            })
            .collect();
        Ok(found)
    }
}

/// Names the frames of stacks, the most recent frame first. Returns the frames of each stack, the
/// oldest frame first.
fn tracebacks(stacks: &[Vec<FoundFrame>], image: u32, names: &ProcessNames) -> Vec<Vec<FoundAt>> {
    let address = |frame: &FoundFrame| match frame {
        FoundFrame::Native(address, object) => {
            Some((*address, object.as_ref().map(|object| (object.index, object.bias))))
        }
        FoundFrame::Python(..) => None,
    };
    let addresses: Vec<_> = stacks.iter().flatten().filter_map(address).collect();
    let mut located = names.locate(image, &addresses).into_iter();
    let mut traceback = |frames: &Vec<FoundFrame>| {
        let mut traceback = Vec::new();
        for frame in frames {
            match frame {
                FoundFrame::Native(address, object) => {
                    let locations = located.next().unwrap_or_default();
                    traceback.extend(native_frames(*address, object.as_ref(), &locations));
                }
                FoundFrame::Python(file, line, function) => traceback.push(FoundAt {
                    module: file.clone(),
                    lineno: Some(*line),
                    function: Some(function.clone()),
                    ..FoundAt::default()
                }),
            }
        }
        without_plumbing(&mut traceback);
        traceback.reverse();
        traceback
    };
    stacks.iter().map(&mut traceback).collect()
}

impl Stats {
    /// Collects the numbers of a process.
    pub fn new(pid: u32, nframe: u32, figures: &Figures, unseen: Vec<Unseen>, trace: Trace) -> Stats {
        Stats {
            snapshot: Session {
                pid,
                command: figures.image.command.clone(),
                taken_at: rfc3339(figures.taken),
                mode: mode_name(figures.sample_interval, &unseen).to_owned(),
                unseen,
                trace,
                sample_interval: figures.sample_interval,
                nframe,
                lost: figures.lost.clone(),
                contradictions: figures.contradictions.total(),
                untracked_frees: figures.untracked_frees,
            },
            domains: figures.domains.iter().map(DomainStats::from).collect(),
            own: Own {
                target_bytes: figures.target_bytes,
                aggregator_bytes: procfs::own_resident_bytes(),
                tracemalloc_queries: figures.queries,
            },
        }
    }
}

impl From<&DomainTotals> for DomainStats {
    fn from(totals: &DomainTotals) -> DomainStats {
        DomainStats {
            domain: totals.domain.to_string(),
            current: totals.current,
            peak: totals.peak,
            blocks: totals.blocks,
            allocs: totals.allocs,
            frees: totals.frees,
            allocated_bytes: totals.allocated_bytes,
        }
    }
}

impl Found {
    /// Describes a live block. `names` names the frames.
    pub fn new(found: &FoundBlock, names: &ProcessNames) -> Found {
        let frames = std::slice::from_ref(&found.frames);
        let traceback = tracebacks(frames, found.image, names).pop().unwrap_or_default();
        let (tid, thread) = found.thread.clone();
        Found {
            address: format!("{:#x}", found.block.address),
            domain: found.domain.to_string(),
            size: found.block.size,
            tid,
            thread,
            traceback,
            total_nframe: found.total_nframe,
        }
    }
}

/// Removes the frames of the collector, and the frames of allocators at the recent end, as reports
/// do. The oldest frame always stays.
fn without_plumbing(recent_first: &mut Vec<FoundAt>) {
    recent_first.retain(|frame| !plumbing::is_collector(&frame.module));
    let part = |frame: &FoundAt| match (&frame.filename, &frame.function) {
        (Some(file), _) if plumbing::is_allocator_file(file) => Part::Carries,
        (_, Some(function)) => plumbing::part(function),
        (_, None) => Part::Asks,
    };
    let count = plumbing::count(recent_first.iter().map(|frame| (part(frame), &frame.module)));
    recent_first.drain(..count.min(recent_first.len().saturating_sub(1)));
}

/// Describes a return address: a frame for the function, and for each function inlined there, the
/// innermost first.
fn native_frames(address: u64, object: Option<&FoundObject>, locations: &[Location]) -> Vec<FoundAt> {
    let (module, bias) = object.map_or_else(Default::default, |object| (object.path.clone(), object.bias));
    let offset = format!("{:#x}", address.wrapping_sub(bias));
    let unnamed = FoundAt { address: format!("{address:#x}"), module, offset, ..FoundAt::default() };
    let named = |location: &Location| {
        let (filename, lineno) = location.line.clone().unzip();
        FoundAt { function: location.function.clone(), filename, lineno, ..unnamed.clone() }
    };
    match locations {
        [] => vec![unnamed],
        locations => locations.iter().map(named).collect(),
    }
}
