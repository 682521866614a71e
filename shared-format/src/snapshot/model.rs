//! What a snapshot says, as plain data.
//!
//! Tables refer to each other by index. A stack is a leaf in a tree of frames, so that stacks that share their older
//! part share its nodes: `stacks[i].leaf` is the most recent frame, `nodes[n].parent` the frame that called it.

use crate::code::LineFormat;
use crate::event::{PYTHON_ENTRY, as_python_frame};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A layer of memory. Layers are never summed: a Python object's block is native memory too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// CPython's allocators: tracemalloc's domain 0.
    Python,
    /// `PyTraceMalloc_Track`'s domain N, N > 0.
    Track(u32),
    /// malloc and its family.
    Native,
    /// Ranges that the program has mapped (mmap, mremap, sbrk) and may use.
    Mmap,
    /// Ranges that it has only reserved (`PROT_NONE`).
    Reserved,
}

impl Domain {
    /// The number in the file: tracemalloc's own for its domains, 2^32 and up for the others.
    pub const fn code(self) -> u64 {
        match self {
            Domain::Python => 0,
            Domain::Track(n) => n as u64,
            Domain::Native => 1 << 32,
            Domain::Mmap => (1 << 32) + 1,
            Domain::Reserved => (1 << 32) + 2,
        }
    }

    /// The domain of a code.
    pub fn from_code(code: u64) -> Option<Domain> {
        match code {
            0 => Some(Domain::Python),
            n if n < 1 << 32 => Some(Domain::Track(u32::try_from(n).ok()?)),
            n if n == Domain::Native.code() => Some(Domain::Native),
            n if n == Domain::Mmap.code() => Some(Domain::Mmap),
            n if n == Domain::Reserved.code() => Some(Domain::Reserved),
            _ => None,
        }
    }

    /// Whether its blocks are sampled where samples are recorded; all others are recorded always.
    pub const fn is_sampled(self) -> bool {
        matches!(self, Domain::Python | Domain::Native)
    }

    /// Whether its blocks are ranges of pages.
    pub const fn is_of_ranges(self) -> bool {
        matches!(self, Domain::Mmap | Domain::Reserved)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Domain::Python => f.write_str("python"),
            Domain::Track(n) => write!(f, "track:{n}"),
            Domain::Native => f.write_str("native"),
            Domain::Mmap => f.write_str("mmap"),
            Domain::Reserved => f.write_str("mmap:reserved"),
        }
    }
}

/// Accepts the names that [`Domain`] prints, and tracemalloc's numbers.
impl FromStr for Domain {
    type Err = String;

    fn from_str(s: &str) -> Result<Domain, String> {
        let number = |s: &str| match s.parse::<u32>() {
            Ok(0) => Some(Domain::Python),
            Ok(n) => Some(Domain::Track(n)),
            Err(_) => None,
        };
        match s {
            "python" => Ok(Domain::Python),
            "native" => Ok(Domain::Native),
            "mmap" => Ok(Domain::Mmap),
            "mmap:reserved" => Ok(Domain::Reserved),
            _ => s.strip_prefix("track:").and_then(number).or_else(|| number(s)).ok_or_else(|| {
                format!("no domain is called {s:?}: use python, native, mmap, mmap:reserved, track:N or tracemalloc's number")
            }),
        }
    }
}

/// How the target's tracing stood when the snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It goes on.
    Running,
    /// The process ended by itself.
    Exited,
    /// A signal ended the process.
    Killed,
    /// The aggregator detached.
    Detached,
    /// The target stopped tracing because the aggregator made no progress (or for the cause in [`Meta::notes`]).
    Stalled,
}

/// Where and how the snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Process id of the target.
    pub pid: u32,
    /// Its command line, arguments joined by spaces.
    pub command: String,
    /// Path of its executable.
    pub executable: String,
    /// RFC 3339, UTC.
    pub taken_at: String,
    /// Version of Heapline that wrote it.
    pub heapline: String,
    /// One in so many bytes was sampled; 0 means exact.
    pub sample_interval: u64,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// See [`End`].
    pub end: End,
    /// Exit status of the process, 128 + N when signal N ended it, where it is known.
    pub exit_status: Option<i32>,
    /// Missing events by cause.
    pub lost: std::collections::BTreeMap<String, u64>,
    /// Events that contradicted the table and were resolved by rule, by kind.
    pub contradictions: std::collections::BTreeMap<String, u64>,
    /// Frees of blocks that were older than the tracing.
    pub untracked_frees: u64,
    /// Blocks that were inside `realloc`, and calls of `munmap` and `mremap` that had not returned, at the end.
    pub in_realloc: u64,
    /// What Heapline itself used in the target (collector's own memory and rings), in bytes.
    pub target_bytes: u64,
    /// What the aggregator used, in bytes.
    pub aggregator_bytes: u64,
    /// Sentences that every report of this snapshot must show.
    pub notes: Vec<String>,
    /// Parts of the program's memory that are not seen. Empty in snapshots of a Heapline that did
    /// not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Unseen>,
}

/// A part of the program's memory that the snapshot knows it has not seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unseen {
    /// What kind of cause it is, in one word ("allocator", "runtime", "python" ...). A later
    /// Heapline may have others.
    pub kind: String,
    /// Path of the object that the cause lies in; empty where there is none.
    pub object: String,
    /// What is not seen, in a few words ("jemalloc (prefix _rjem_)").
    pub name: String,
    /// A sentence: what that means for the figures, and what the user can do.
    pub text: String,
}

impl Unseen {
    /// What is not seen and where, for a list: "jemalloc (prefix _rjem_) in polars.abi3.so".
    pub fn brief(&self) -> String {
        match self.object.rsplit('/').next() {
            Some(file) if !file.is_empty() => format!("{} in {file}", self.name),
            _ => self.name.clone(),
        }
    }

    /// The whole statement in one line.
    pub fn sentence(&self) -> String {
        format!("{}: {}", self.brief(), self.text)
    }
}

/// Causes that a list names one by one.
const NAMED_CAUSES: usize = 3;

/// The causes in a few words, to follow "not seen: ". None when everything is seen.
pub fn brief_unseen(causes: &[Unseen]) -> Option<String> {
    let mut named: Vec<String> = causes.iter().take(NAMED_CAUSES).map(Unseen::brief).collect();
    if let more @ 1.. = causes.len().saturating_sub(NAMED_CAUSES) {
        named.push(format!("{more} more"));
    }
    (!named.is_empty()).then(|| named.join(", "))
}

/// Mappings of fewer bytes are worth no hint.
const MUCH_MAPPED: u64 = 16 << 20;

/// A hint where the blocks that are looked at are a small part of what the process has mapped, now
/// or at the peaks.
pub fn mostly_mapped(domains: &[DomainTotals], view: Domain, at_peak: bool) -> Option<String> {
    let bytes = |domain| {
        let row = domains.iter().find(|row| row.domain == domain);
        row.map_or(0, |row| if at_peak { row.peak } else { row.current })
    };
    let (mapped, blocks) = (bytes(Domain::Mmap), bytes(Domain::Native).saturating_add(bytes(Domain::Python)));
    let hides = view.is_sampled() && mapped >= MUCH_MAPPED && mapped >= blocks.saturating_mul(4);
    hides.then(|| {
        let when = if at_peak { "at the peak" } else { "now" };
        format!(
            "Most of this process's memory is in mappings ({} MiB {when}): report --domain mmap shows them",
            mapped >> 20
        )
    })
}

/// What the mode of a recording is called: how much of the allocations was recorded.
pub fn mode_name(sample_interval: u64, unseen: &[Unseen]) -> &'static str {
    match sample_interval {
        0 if unseen.is_empty() => "exact",
        0 => "partial",
        _ => "sampled",
    }
}

/// How a process came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Birth {
    /// It was forked: a copy of its parent.
    Fork,
    /// exec began its program, in a process that was not traced before.
    Exec,
}

/// What a process has of another of the same followed tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Process id of its parent in the tree.
    pub parent: u32,
    /// See [`Birth`].
    pub birth: Birth,
    /// Blocks that were live at the fork, by domain: they are in no sum of allocations. None for a program that exec began,
    /// and where they are not known.
    pub inherited: Option<std::collections::BTreeMap<String, u64>>,
}

/// A loaded object. A library that was unloaded and loaded again elsewhere, or from another file, is two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Path as the loader knew it; the executable's resolved.
    pub path: String,
    /// GNU build-id, empty when it has none.
    pub build_id: Vec<u8>,
    /// First address of the mapping.
    pub start: u64,
    /// End of the mapping.
    pub end: u64,
    /// What to subtract from an address to get the file's own (its virtual addresses).
    pub bias: u64,
    /// False when it was unloaded before the snapshot.
    pub loaded: bool,
}

/// A Python code object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// Its file, as it says.
    pub filename: String,
    /// Its qualified name; before CPython 3.11 the name.
    pub name: String,
    /// Line of its beginning.
    pub first_line: u32,
    /// How `line_table` is to be read.
    pub lines: LineFormat,
    /// Which instruction belongs to which line.
    pub line_table: Vec<u8>,
}

/// A physical frame: a return address, which points behind the call (subtract one before looking it up), or an instruction of
/// a Python code object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Return address at run time, or what [`crate::event::python_frame`] makes of the index of a code object.
    pub address: u64,
    /// Index of the module that was mapped there; none for code that belongs to no object.
    pub module: Option<u32>,
}

impl Frame {
    /// Index of the code object and offset of the instruction in bytes, if it is Python's.
    pub fn as_python(self) -> Option<(u32, u32)> {
        as_python_frame(self.address).filter(|_| self.module.is_none())
    }

    /// Whether C code called the Python frame, so that a native frame stands for it and what it calls.
    pub fn is_python_entry(self) -> bool {
        self.address & PYTHON_ENTRY != 0 && self.as_python().is_some()
    }
}

/// A node of the tree of stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node of the caller, always a smaller index; none at the root.
    pub parent: Option<u32>,
    /// Index of the frame.
    pub frame: u32,
}

/// A traceback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The node of the most recent frame; none for an empty stack.
    pub leaf: Option<u32>,
    /// True physical depth, saturating at 65535; more than the nodes when `nframe` cut it.
    pub total_nframe: u16,
    /// The walk could not go on to the root.
    pub truncated: bool,
}

/// What Python ran when a native stack allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixed {
    /// The native stack; each stands in one row at most.
    pub stack: u32,
    /// The Python stack.
    pub python: u32,
}

/// Blocks of a stack that are samples: each stands for more blocks like it ([`super::weight`]), and its bytes are an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// The stack, which has blocks of this kind only; each stands in one row at most.
    pub stack: u32,
    /// Mean distance of the samples, in bytes.
    pub interval: u64,
    /// True size of each block, in bytes.
    pub size: u64,
}

/// Which process has drawn the samples of a snapshot, and which live samples other processes may
/// have too. A forked process has its parent's samples, and the copies of one sample are one draw:
/// sums over processes need to know that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draws {
    /// Stands for the process as one that draws samples: no other process has the number.
    pub by: u64,
    /// The processes that this one descends from by forks, the oldest first, so their ends rise.
    pub ancestors: Vec<Ancestor>,
    /// Only samples of stacks below this index may be in other processes too.
    pub shared_end: u32,
    /// The live samples of these stacks, by rising row of the live blocks.
    pub shared: Vec<SharedSample>,
}

/// A process that others descend from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// See [`Draws::by`].
    pub by: u64,
    /// Samples of stacks below this index, unless an older ancestor has drawn them, were drawn by
    /// this one.
    pub end: u32,
}

/// A live sample that other processes may have too. Two processes have the same one where the
/// process that has drawn it, the domain, the stack and the address are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSample {
    /// Row of the live blocks that it is counted in.
    pub live: u32,
    /// Address of the block.
    pub address: u64,
}

impl Draws {
    /// The process that has drawn the samples of a stack.
    pub fn drawn_by(&self, stack: u32) -> u64 {
        let older = self.ancestors.partition_point(|ancestor| ancestor.end <= stack);
        self.ancestors.get(older).map_or(self.by, |ancestor| ancestor.by)
    }

    /// The process and all that it descends from.
    pub fn lineage(&self) -> impl Iterator<Item = u64> + '_ {
        self.ancestors.iter().map(|ancestor| ancestor.by).chain([self.by])
    }
}

/// All calls of a thread while samples were recorded, counted exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadCalls {
    /// Index of the thread.
    pub thread: u32,
    /// Layer.
    pub domain: Domain,
    /// Blocks allocated.
    pub allocs: u64,
    /// Bytes allocated.
    pub bytes: u64,
    /// Blocks freed.
    pub frees: u64,
}

/// A thread that has allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Thread id as the target sees it; ids are reused.
    pub tid: u32,
    /// Its name, as last seen.
    pub name: String,
    /// Whether it lived when the snapshot was taken.
    pub alive: bool,
}

/// Sums of a domain. Where blocks are ranges, parts of one are taken back, so its sums of calls are what it says and no more:
/// `allocs` less `frees` are not its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainTotals {
    /// Which.
    pub domain: Domain,
    /// Bytes of live blocks.
    pub current: u64,
    /// Greatest `current` since the start, or since the last reset-peak.
    pub peak: u64,
    /// Live blocks.
    pub blocks: u64,
    /// Blocks allocated since the start.
    pub allocs: u64,
    /// Blocks freed since the start.
    pub frees: u64,
    /// Bytes allocated since the start.
    pub allocated_bytes: u64,
}

/// Live blocks that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveGroup {
    /// Layer.
    pub domain: Domain,
    /// Index of the stack that allocated them.
    pub stack: u32,
    /// Index of the thread that allocated them.
    pub thread: u32,
    /// Size of each, in bytes.
    pub size: u64,
    /// How many.
    pub count: u64,
}

/// What one stack allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackTotals {
    /// Layer.
    pub domain: Domain,
    /// Index of the stack.
    pub stack: u32,
    /// Bytes live at the moment of the domain's peak.
    pub peak_size: u64,
    /// Blocks live at that moment.
    pub peak_count: u64,
    /// Bytes allocated since the start.
    pub total_size: u64,
    /// Blocks allocated since the start.
    pub total_count: u64,
}

/// A consistent cut of one process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the types say it")]
pub struct Snapshot {
    pub meta: Meta,
    /// Of a child process that was followed.
    pub origin: Option<Origin>,
    pub modules: Vec<Module>,
    pub codes: Vec<Code>,
    pub frames: Vec<Frame>,
    pub nodes: Vec<Node>,
    pub stacks: Vec<Stack>,
    /// Native stacks of CPython's threads, by rising stack.
    pub mixed: Vec<Mixed>,
    /// Stacks of samples, by rising stack.
    pub sampled: Vec<Sampled>,
    /// What threads did, where samples were recorded.
    pub calls: Vec<ThreadCalls>,
    pub threads: Vec<Thread>,
    pub domains: Vec<DomainTotals>,
    pub live: Vec<LiveGroup>,
    pub totals: Vec<StackTotals>,
    /// Where samples were recorded in a process that has forked or was forked.
    pub draws: Option<Draws>,
}
