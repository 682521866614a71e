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
}
