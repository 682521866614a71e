//! The content of a snapshot, as plain data.
//!
//! Tables refer to each other by index. A stack is a leaf in a tree of frames, so stacks with the
//! same older frames share nodes: `stacks[i].leaf` is the most recent frame, `nodes[n].parent` the
//! frame of the caller.

pub use super::domain::Domain;
use super::history::History;
use crate::code::LineFormat;
use crate::event::{PYTHON_ENTRY, as_python_frame};
use crate::text::{counted, printable, size};
use serde::{Deserialize, Serialize};

/// State of the target's tracing when the snapshot was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The tracing goes on.
    #[default]
    Running,
    /// The process ended by itself.
    Exited,
    /// A signal ended the process.
    Killed,
    /// The aggregator detached.
    Detached,
    /// The target stopped tracing because the aggregator made no progress, or for the cause in
    /// [`Meta::notes`].
    Stalled,
}

/// Begin of the trace of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Begun {
    /// The trace began with the program.
    #[default]
    Start,
    /// An aggregator attached to the running program. Blocks from before are not known.
    Attach,
    /// The process was forked from a traced process. [`Origin::inherited`] counts the blocks of the
    /// parent that the trace began with.
    Fork,
}

impl Begun {
    /// Returns the begin of the trace in words: "since the attach".
    pub fn since(self) -> &'static str {
        match self {
            Begun::Start => "since the start",
            Begun::Attach => "since the attach",
            Begun::Fork => "since the fork",
        }
    }

    fn is_start(&self) -> bool {
        *self == Begun::Start
    }
}

/// Where and how the snapshot was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Process id of the target.
    pub pid: u32,
    /// Command line of the target, arguments joined by spaces.
    pub command: String,
    /// Path of the target's executable.
    pub executable: String,
    /// Time of the snapshot: RFC 3339, UTC.
    pub taken_at: String,
    /// Version of the Heapline that wrote the snapshot.
    pub heapline: String,
    /// Mean distance of samples in bytes. 0 means exact: everything was recorded.
    pub sample_interval: u64,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Begin of the trace. Snapshots of older Heaplines have no such field, and read as `Start`.
    #[serde(default, skip_serializing_if = "Begun::is_start")]
    pub begun: Begun,
    /// State of the tracing.
    pub end: End,
    /// Exit status of the process, where known. 128 + N when signal N ended the process.
    pub exit_status: Option<i32>,
    /// Missing events by cause.
    pub lost: std::collections::BTreeMap<String, u64>,
    /// Number of events that contradicted the live table and were resolved by rule, by kind.
    pub contradictions: std::collections::BTreeMap<String, u64>,
    /// Number of frees of blocks older than the tracing.
    pub untracked_frees: u64,
    /// Number of calls that had not returned at the end: `realloc` of blocks, `munmap` and
    /// `mremap`.
    pub in_realloc: u64,
    /// Memory of Heapline in the target (collector and rings), in bytes.
    pub target_bytes: u64,
    /// Memory of the aggregator, in bytes.
    pub aggregator_bytes: u64,
    /// Sentences to show in every report of this snapshot.
    pub notes: Vec<String>,
    /// Unseen parts of the program's memory. Empty in snapshots of older Heaplines without this
    /// field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Unseen>,
    /// Name of the allocator behind the process's `malloc`: glibc, musl, jemalloc ... None where it
    /// is not known, and in snapshots of older Heaplines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocator: Option<String>,
}

/// A part of the program's memory that the recording does not see.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unseen {
    /// Kind of the cause, in a word ("allocator", "runtime", "python" ...). Later Heaplines may
    /// have other kinds.
    pub kind: String,
    /// Path of the object with the cause; empty without an object.
    pub object: String,
    /// Name of the unseen part, in a few words ("jemalloc (prefix _rjem_)").
    pub name: String,
    /// A sentence: the meaning for the figures, and possible actions of the user.
    pub text: String,
}

impl Unseen {
    /// Returns the name of the unseen part and its object, for a list: "jemalloc (prefix _rjem_) in
    /// polars.abi3.so".
    pub fn brief(&self) -> String {
        match self.object.rsplit('/').next() {
            Some(file) if !file.is_empty() => format!("{} in {file}", self.name),
            _ => self.name.clone(),
        }
    }

    /// Returns the whole statement as a line of text.
    pub fn sentence(&self) -> String {
        format!("{}: {}", self.brief(), self.text)
    }
}

/// Number of causes that a list names.
const NAMED_CAUSES: usize = 3;

/// Returns the causes in a few words, to follow "not seen: ". None when everything is seen.
pub fn brief_unseen(causes: &[Unseen]) -> Option<String> {
    let mut named: Vec<String> = causes.iter().take(NAMED_CAUSES).map(Unseen::brief).collect();
    if let more @ 1.. = causes.len().saturating_sub(NAMED_CAUSES) {
        named.push(format!("{more} more"));
    }
    (!named.is_empty()).then(|| named.join(", "))
}

/// Mappings below this size, in bytes, get no hint.
const MUCH_MAPPED: u64 = 16 << 20;

/// Returns a hint when the viewed blocks are a small part of the memory mapped by the process.
/// Compares present sizes or, with `at_peak`, peaks. `whose` is "this process's memory" or alike.
pub fn mostly_mapped(domains: &[DomainTotals], view: Domain, at_peak: bool, whose: &str) -> Option<String> {
    let bytes = |domain| {
        let row = domains.iter().find(|row| row.domain == domain);
        row.map_or(0, |row| if at_peak { row.peak } else { row.current })
    };
    let (mapped, blocks) = (bytes(Domain::Mmap), bytes(Domain::Native).saturating_add(bytes(Domain::Python)));
    let hides = view.is_sampled() && mapped >= MUCH_MAPPED && mapped >= blocks.saturating_mul(4);
    hides.then(|| {
        let when = if at_peak { "at the peak" } else { "now" };
        format!("Most of {whose} is in mappings ({} {when}): report --domain mmap shows them", size(mapped))
    })
}

/// Returns the name of a recording's mode: how much of the allocations was recorded.
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
    /// The process was forked: a copy of the parent.
    Fork,
    /// exec began the program, in a process not traced before.
    Exec,
}

/// Relation of a process to its parent in a followed tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Process id of the parent in the tree.
    pub parent: u32,
    /// How the process came to be.
    pub birth: Birth,
    /// Number of blocks live at the fork, by domain. No sum of allocations contains them. None for
    /// a program begun by exec, and when unknown.
    pub inherited: Option<std::collections::BTreeMap<String, u64>>,
}

/// Describes the blocks that a forked process began with: "began with 12 native blocks of process
/// 7". `inherited` has the numbers by domain.
pub fn began_with(inherited: &std::collections::BTreeMap<String, u64>, parent: u32) -> String {
    let blocks = inherited.iter().filter(|&(_, &n)| n > 0).map(|(domain, &n)| counted(n, &format!("{domain} block")));
    let blocks = blocks.collect::<Vec<_>>().join(", ");
    let blocks = if blocks.is_empty() { "no block" } else { &blocks };
    printable(&format!("began with {blocks} of process {parent}")).into_owned()
}

/// A loaded object. A library unloaded, and loaded again at another place or from another file,
/// counts as two objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Path as the loader knew it; resolved for the executable.
    pub path: String,
    /// GNU build-id; empty without a build-id.
    pub build_id: Vec<u8>,
    /// First address of the mapping.
    pub start: u64,
    /// End of the mapping.
    pub end: u64,
    /// Load bias: subtract it from an address to get the address in the file (a virtual address).
    pub bias: u64,
    /// False when the module was unloaded before the snapshot.
    pub loaded: bool,
}

/// A Python code object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// File name stored in the code object.
    pub filename: String,
    /// Qualified name; before CPython 3.11 the plain name.
    pub name: String,
    /// First line of the code.
    pub first_line: u32,
    /// Format of `line_table`.
    pub lines: LineFormat,
    /// Table from instructions to lines.
    pub line_table: Vec<u8>,
}

/// A physical frame: a return address, or an instruction of a Python code object. A return address
/// points behind the call: subtract 1 before looking it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Return address at run time, or the value of [`crate::event::python_frame`] with the index of
    /// a code object.
    pub address: u64,
    /// Index of the module mapped at the address. None for code outside of all objects.
    pub module: Option<u32>,
}

impl Frame {
    /// Returns the index of the code object and the offset of the instruction in bytes. None for a
    /// native frame.
    pub fn as_python(self) -> Option<(u32, u32)> {
        as_python_frame(self.address).filter(|_| self.module.is_none())
    }

    /// Whether C code called the Python frame. A native frame then stands for this frame and its
    /// Python callees.
    pub fn is_python_entry(self) -> bool {
        self.address & PYTHON_ENTRY != 0 && self.as_python().is_some()
    }
}

impl Snapshot {
    /// Whether the walk left a frame, for its caller, by the frame pointer.
    pub fn is_left_by_frame_pointer(&self, frame: u32) -> bool {
        self.by_frame_pointer.binary_search(&frame).is_ok()
    }
}

/// A node of the tree of stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Node of the caller, always at a smaller index. None at the root.
    pub parent: Option<u32>,
    /// Index of the frame.
    pub frame: u32,
}

/// A traceback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Node of the most recent frame. None for an empty stack.
    pub leaf: Option<u32>,
    /// True physical depth, saturating at 65535. Larger than the number of nodes when `nframe` cut
    /// the stack.
    pub total_nframe: u16,
    /// Whether the walk could not reach the root.
    pub truncated: bool,
}

/// The Python stack of a native stack, at the moment of the allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixed {
    /// Index of the native stack; a stack has at most 1 row.
    pub stack: u32,
    /// Index of the Python stack.
    pub python: u32,
}

/// A stack whose blocks are samples. Each sample stands for more blocks of its kind
/// ([`super::weight`]), so sizes are estimates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Index of the stack; all its blocks are such samples. A stack has at most 1 row.
    pub stack: u32,
    /// Mean distance of the samples, in bytes.
    pub interval: u64,
    /// True size of each block, in bytes.
    pub size: u64,
}

/// Owners of the samples in a snapshot, and live samples shared with other processes.
///
/// A forked process has the parent's samples. The copies of a sample are a single draw: sums over
/// processes need this fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draws {
    /// Number of the process as a source of samples, unique among processes.
    pub by: u64,
    /// Processes from which this process descends by forks, the oldest first. So the values of
    /// `end` rise.
    pub ancestors: Vec<Ancestor>,
    /// Only samples of stacks below this index may be in other processes too.
    pub shared_end: u32,
    /// The live samples of the stacks below `shared_end`, sorted by row of the live blocks.
    pub shared: Vec<SharedSample>,
}

/// A process with forked descendants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Number of the process as a source of samples ([`Draws::by`]).
    pub by: u64,
    /// End of the ancestor's stacks. The ancestor has drawn the samples of stacks below this index,
    /// except for the samples of older ancestors.
    pub end: u32,
}

/// A live sample that other processes may have too. Samples of two processes are the same draw when
/// drawing process, domain, stack and address are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSample {
    /// Row of the live blocks that counts the sample.
    pub live: u32,
    /// Address of the block.
    pub address: u64,
}

impl Draws {
    /// Returns the number of the process that has drawn the samples of a stack.
    pub fn drawn_by(&self, stack: u32) -> u64 {
        let older = self.ancestors.partition_point(|ancestor| ancestor.end <= stack);
        self.ancestors.get(older).map_or(self.by, |ancestor| ancestor.by)
    }

    /// Returns the numbers of all ancestors, and of the process itself.
    pub fn lineage(&self) -> impl Iterator<Item = u64> + '_ {
        self.ancestors.iter().map(|ancestor| ancestor.by).chain([self.by])
    }
}

/// Counts of all calls of a thread while samples were recorded. The counts are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadCalls {
    /// Index of the thread.
    pub thread: u32,
    /// Layer of memory.
    pub domain: Domain,
    /// Blocks allocated.
    pub allocs: u64,
    /// Bytes allocated.
    pub bytes: u64,
    /// Blocks freed.
    pub frees: u64,
}

/// A thread that has allocated, or all ended threads with a name of the same pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Thread id, as seen by the target; ids are reused. 0 for ended threads that are added up by
    /// name: threads without live blocks whose rows later threads have taken.
    pub tid: u32,
    /// Name of the thread, as last seen. The name of added up threads has a `*` for each run of
    /// digits: `worker-*`.
    pub name: String,
    /// Whether the thread was alive when the snapshot was taken.
    pub alive: bool,
}

/// Sums of a domain.
///
/// For ranges of pages, a part of a range can be unmapped alone. There, `allocs` less `frees` is
/// not the number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainTotals {
    /// Layer of memory.
    pub domain: Domain,
    /// Bytes of live blocks.
    pub current: u64,
    /// Greatest value of `current` since the start, or since the last reset-peak.
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

/// A group of live blocks with equal properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveGroup {
    /// Layer of memory.
    pub domain: Domain,
    /// Index of the stack that allocated the blocks.
    pub stack: u32,
    /// Index of the thread that allocated the blocks.
    pub thread: u32,
    /// Size of each block, in bytes.
    pub size: u64,
    /// Number of blocks.
    pub count: u64,
}

/// Times of birth of the live blocks.
///
/// A block of a `realloc` is born at the call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// Begin of each span of time, rising, in milliseconds since 1970, UTC. A span ends where the
    /// next begins, the last at the snapshot. Spans are fine where recent, and coarse where old.
    pub begins: Vec<u64>,
    /// Numbers of the live blocks by span, sorted by row and span. All blocks of a row are counted.
    pub blocks: Vec<BornBlocks>,
}

/// Live blocks born in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BornBlocks {
    /// Row of the live blocks.
    pub live: u32,
    /// Index of the span.
    pub span: u32,
    /// Number of blocks.
    pub count: u64,
}

/// Bounds between the classes of lifetimes, in milliseconds.
pub const LIFETIME_BOUNDS: [u64; 5] = [1_000, 10_000, 60_000, 600_000, 3_600_000];
/// Number of classes of lifetimes: below each bound, and above all.
pub const LIFETIME_CLASSES: usize = LIFETIME_BOUNDS.len() + 1;

/// Lifetimes of a stack's ended blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackLifetimes {
    /// Layer of memory.
    pub domain: Domain,
    /// Index of the stack.
    pub stack: u32,
    /// Blocks freed by the next event of the allocating thread in the domain. 0 of samples.
    pub temporary: u64,
    /// Blocks that ended in the step of the history that they were born in.
    pub within_step: u64,
    /// Blocks that ended in a later step, by class. A lifetime is the time between the begins of
    /// the two steps, so it is true to a step.
    pub ended: [u64; LIFETIME_CLASSES],
}

/// Sums of the allocations of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackTotals {
    /// Layer of memory.
    pub domain: Domain,
    /// Index of the stack.
    pub stack: u32,
    /// Bytes live at the domain's peak.
    pub peak_size: u64,
    /// Blocks live at the domain's peak.
    pub peak_count: u64,
    /// Bytes allocated since the start.
    pub total_size: u64,
    /// Blocks allocated since the start.
    pub total_count: u64,
}

/// Functions and lines of frames, looked up on the machine of the process while the files were
/// there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Names of functions and paths of source files.
    pub texts: Vec<String>,
    /// The modules whose symbols were read, sorted by module.
    pub modules: Vec<NamedModule>,
    /// The frames with names, sorted by frame.
    pub frames: Vec<NamedFrame>,
}

/// A module whose symbols were read. A frame of the module without a row in [`Names::frames`] has
/// no symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedModule {
    /// Index of the module.
    pub module: u32,
    /// Whether the names come from debug information, not from a symbol table alone.
    pub has_lines: bool,
    /// Whether part of the debug information could not be read.
    pub is_incomplete: bool,
}

/// The functions at a frame's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFrame {
    /// Index of the frame.
    pub frame: u32,
    /// The function with code at the address, and the functions inlined there: the innermost first.
    pub places: Vec<Place>,
}

/// A function, and the line of a call in the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the function's demangled name. None if unknown.
    pub function: Option<u32>,
    /// Index of the source file's path, and the line. None if unknown.
    pub line: Option<(u32, u32)>,
}

impl Names {
    /// Whether no names were looked up.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty() && self.frames.is_empty()
    }

    /// Returns the functions at a frame, the innermost first; empty if none are stored.
    pub fn of_frame(&self, frame: u32) -> &[Place] {
        let found = self.frames.binary_search_by_key(&frame, |row| row.frame);
        found.map_or(&[], |index| &self.frames[index].places)
    }

    /// Returns the row of a module. None if the module's symbols were not read.
    pub fn of_module(&self, module: u32) -> Option<NamedModule> {
        let found = self.modules.binary_search_by_key(&module, |row| row.module);
        found.ok().map(|index| self.modules[index])
    }
}

/// Sums of the allocations of a thread.
///
/// Blocks of samples count as the blocks that the samples stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadTotals {
    /// Index of the thread.
    pub thread: u32,
    /// Layer of memory.
    pub domain: Domain,
    /// Bytes live at the domain's peak.
    pub peak_size: u64,
    /// Blocks live at the domain's peak.
    pub peak_count: u64,
    /// Bytes allocated since the start.
    pub total_size: u64,
    /// Blocks allocated since the start.
    pub total_count: u64,
}

/// A consistent cut of a process's memory. The default has no rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the types say it")]
pub struct Snapshot {
    pub meta: Meta,
    /// Parent of a followed child process.
    pub origin: Option<Origin>,
    pub modules: Vec<Module>,
    pub codes: Vec<Code>,
    pub frames: Vec<Frame>,
    /// Indexes of the native frames that the walk left, for their callers, by frame pointers,
    /// rising. The walk left all others by unwind tables.
    pub by_frame_pointer: Vec<u32>,
    pub nodes: Vec<Node>,
    pub stacks: Vec<Stack>,
    /// Native stacks of CPython's threads, sorted by stack.
    pub mixed: Vec<Mixed>,
    /// Stacks of samples, sorted by stack.
    pub sampled: Vec<Sampled>,
    /// Calls of threads; only in snapshots with samples.
    pub calls: Vec<ThreadCalls>,
    pub threads: Vec<Thread>,
    pub domains: Vec<DomainTotals>,
    pub live: Vec<LiveGroup>,
    pub totals: Vec<StackTotals>,
    /// Sums per thread, by rising number of the domain and rising thread. Empty in snapshots of
    /// older Heaplines.
    pub thread_totals: Vec<ThreadTotals>,
    /// Owners of samples; only with samples, in a process that has forked or was forked.
    pub draws: Option<Draws>,
    /// Functions and lines of frames.
    pub names: Names,
    /// Memory over time. None if it was not recorded, and in snapshots of older Heaplines.
    pub history: Option<History>,
    /// Ages of the live blocks. None without a history, and in snapshots of older Heaplines.
    pub ages: Option<Ages>,
    /// Lifetimes of ended blocks, by rising number of the domain and rising stack. Empty without a
    /// history, and in snapshots of older Heaplines.
    pub lifetimes: Vec<StackLifetimes>,
}
