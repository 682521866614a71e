//! Builds the snapshot file's content from a cut of the tables. The `report` command reads this
//! content.

use crate::base::text::rfc3339;
use crate::process::procfs;
use crate::snapshot::cut::{Cut, Figures, Layer};
use crate::snapshot::groups::{Group, Sorted};
use crate::snapshot::threads::ThreadIndex;
use crate::table::stacks::{CodeFrame, Drawn, NONE};
use heapline_shared_format::code::LineFormat;
use heapline_shared_format::event::{PYTHON_ENTRY, as_python_frame, python_frame};
use heapline_shared_format::snapshot::{
    Ages, Birth, BornBlocks, Code, Draws, End, Frame, LiveGroup, Meta, Module, Names, Node, Origin, SharedSample,
    Snapshot, StackLifetimes, StackTotals,
};
use heapline_shared_format::text::counted;
use std::collections::HashMap;
use std::sync::Arc;

/// Facts of a snapshot besides the tables.
#[derive(Clone, Debug)]
pub struct About {
    /// Process id of the target.
    pub pid: u32,
    /// State of the tracing of the target.
    pub end: End,
    /// Exit status, if known.
    pub exit_status: Option<i32>,
    /// Notes shown in every report.
    pub notes: Vec<String>,
    /// For a child process: its parent in the tree, and its origin (fork or exec).
    pub origin: Option<(u32, Birth)>,
}

/// Builds the snapshot of a cut. The caller adds the unseen allocators and the names of frames
/// later, because both depend on the snapshot's modules.
pub fn build(cut: Cut, about: About) -> Snapshot {
    let figures = &cut.figures;
    let meta = Meta {
        pid: about.pid,
        command: figures.image.command.clone(),
        executable: figures.image.executable.clone(),
        taken_at: rfc3339(figures.taken),
        heapline: env!("CARGO_PKG_VERSION").to_owned(),
        sample_interval: figures.sample_interval,
        nframe: cut.nframe,
        begun: figures.begun,
        end: about.end,
        exit_status: about.exit_status,
        lost: figures.lost.clone(),
        contradictions: figures.contradictions.by_name(),
        untracked_frees: figures.untracked_frees,
        in_realloc: figures.in_realloc,
        target_bytes: figures.target_bytes,
        aggregator_bytes: procfs::own_resident_bytes(),
        notes: about.notes.into_iter().chain(notes(figures)).collect(),
        unseen: Vec::new(),
        allocator: None,
    };
    let inherited = figures.inherited.clone();
    let origin = about.origin.map(|(parent, birth)| Origin { parent, birth, inherited });
    let is_over = matches!(about.end, End::Exited | End::Killed);
    let thread_index = ThreadIndex::of(&cut);
    let is_sampled = figures.sample_interval != 0;
    let calls = if is_sampled { thread_index.calls(&cut) } else { Vec::new() };
    let (threads, thread_totals) = (thread_index.threads(&cut, is_over), thread_index.totals(&cut));
    let (frames, codes) = frames(&cut);
    let by_frame_pointer = by_frame_pointer(&cut);
    let modules = modules(&cut);
    let nodes = nodes(&cut);
    let totals = cut.layers.iter().flat_map(totals).collect();
    let domains = cut.figures.domains.clone();
    let is_family = cut.is_of_family();
    let mut lifetimes: Vec<StackLifetimes> = Vec::new();
    if cut.recorded.is_some() {
        lifetimes.extend(cut.layers.iter().flat_map(lifetimes_of));
        lifetimes.sort_unstable_by_key(|row| (row.domain.code(), row.stack));
    }
    let coarsest = cut.layers.iter().map(|layer| layer.live.spans()).max_by_key(|spans| spans.level()).cloned();
    let mut blocks = Blocks::default();
    for mut layer in cut.layers {
        coarsest.iter().for_each(|spans| layer.live.coarsen_to(spans));
        blocks.add(layer, &thread_index);
    }
    let ages = cut.recorded.as_ref().zip(coarsest).map(|(recorded, spans)| Ages {
        begins: spans.begins().iter().map(|&begin| recorded.millis(begin)).collect(),
        blocks: blocks.born,
    });
    let Drawn { by, ancestors, shared_end } = cut.drawn;
    let draws = Draws { by, ancestors, shared_end, shared: blocks.shared };
    Snapshot {
        meta,
        origin,
        modules,
        codes,
        frames,
        by_frame_pointer,
        nodes,
        threads,
        domains,
        totals,
        thread_totals,
        live: blocks.live,
        stacks: cut.tree.stacks.iter().copied().collect(),
        mixed: cut.tree.mixed.iter().copied().collect(),
        sampled: cut.tree.sampled.iter().copied().collect(),
        calls,
        draws: (is_family && is_sampled).then_some(draws),
        names: Names::default(),
        history: cut.recorded.map(|recorded| recorded.history),
        ages,
        lifetimes,
    }
}

/// Lists notes about the tracing itself, for a reader of the numbers.
fn notes(figures: &Figures) -> Vec<String> {
    let (compared, differed) = figures.verified;
    let notes = [
        (
            figures.waits,
            format!("threads waited {} for room in their rings (--max-target-memory)", counted(figures.waits, "time")),
        ),
        (
            figures.stacks_forgotten,
            format!("a thread's table of stacks was filled anew {}", counted(figures.stacks_forgotten, "time")),
        ),
        (
            compared,
            format!(
                "HEAPLINE_VERIFY: {} compared with a fresh walk, {differed} of them differed",
                counted(compared, "stack")
            ),
        ),
        (
            figures.cleared,
            format!(
                "the traces were cleared {} (ctl clear-traces): what was allocated before is forgotten",
                counted(figures.cleared, "time")
            ),
        ),
        (figures.untold, format!("{} of its child processes could not be followed", figures.untold)),
    ];
    notes.into_iter().filter(|&(count, _)| count > 0).map(|(_, note)| note).collect()
}

fn modules(cut: &Cut) -> Vec<Module> {
    let objects = (0..).zip(cut.modules.objects());
    let module = |(index, object): (u32, &crate::table::modules::Object)| Module {
        path: cut.figures.image.path_of(&object.path),
        build_id: object.build_id.clone(),
        start: object.start,
        end: object.end,
        bias: object.bias,
        loaded: cut.modules.is_loaded(index),
    };
    objects.map(module).collect()
}

/// Returns the frames, and the code objects named by the frames by index.
fn frames(cut: &Cut) -> (Vec<Frame>, Vec<Code>) {
    let mut codes = Vec::new();
    let mut index = HashMap::new();
    let described: HashMap<u32, &Arc<Code>> = cut.codes.iter().map(|(id, code)| (*id, code)).collect();
    let frame = |frame: &CodeFrame| match as_python_frame(frame.address) {
        None => Frame { address: frame.address, module: frame.module(&cut.modules) },
        Some((id, offset)) => {
            let code = *index.entry(id).or_insert_with(|| {
                codes.push(described.get(&id).map_or_else(unknown_code, |code| Code::clone(code)));
                u32::try_from(codes.len() - 1).unwrap_or(0)
            });
            Frame { address: python_frame(code, offset) | frame.address & PYTHON_ENTRY, module: None }
        }
    };
    let frames = cut.tree.frames.iter().map(frame).collect();
    (frames, codes)
}

/// Returns the indexes of the frames left by frame pointers.
fn by_frame_pointer(cut: &Cut) -> Vec<u32> {
    let frames = (0..).zip(cut.tree.frames.iter());
    frames.filter(|(_, frame)| frame.by_frame_pointer).map(|(index, _)| index).collect()
}

/// Returns tracemalloc's placeholder for an unknown frame.
fn unknown_code() -> Code {
    let unknown = || "<unknown>".to_owned();
    Code { filename: unknown(), name: unknown(), first_line: 0, lines: LineFormat::Lnotab, line_table: Vec::new() }
}

fn nodes(cut: &Cut) -> Vec<Node> {
    let parent = |parent| (parent != NONE).then_some(parent);
    cut.tree.nodes.iter().map(|node| Node { parent: parent(node.parent), frame: node.frame }).collect()
}

/// Rows of live blocks.
#[derive(Default)]
struct Blocks {
    live: Vec<LiveGroup>,
    born: Vec<BornBlocks>,
    shared: Vec<SharedSample>,
}

impl Blocks {
    /// Adds the blocks of a domain.
    fn add(&mut self, layer: Layer, thread_index: &ThreadIndex) {
        let (domain, before) = (layer.domain, self.live.len());
        let Sorted { groups, born, shared } = layer.live.sorted();
        let row = |place: usize| u32::try_from(before + place).unwrap_or(NONE);
        self.live.extend(groups.into_iter().map(|(Group { stack, thread, size }, count)| LiveGroup {
            domain,
            stack,
            thread: thread_index.row(thread),
            size,
            count,
        }));
        self.born.extend(born.into_iter().map(|(place, span, count)| BornBlocks {
            live: row(place),
            span: span.code().into(),
            count,
        }));
        self.shared.extend(shared.into_iter().map(|(place, address)| SharedSample { live: row(place), address }));
    }
}

fn lifetimes_of(layer: &Layer) -> impl Iterator<Item = StackLifetimes> + '_ {
    layer.lifetimes.iter().map(|&(stack, lifetimes)| StackLifetimes {
        domain: layer.domain,
        stack,
        temporary: lifetimes.temporary,
        within_step: lifetimes.within_step,
        ended: lifetimes.ended,
    })
}

fn totals(layer: &Layer) -> impl Iterator<Item = StackTotals> + '_ {
    layer.stacks.iter().map(|&(stack, amounts)| StackTotals {
        domain: layer.domain,
        stack,
        peak_size: amounts.peak.size,
        peak_count: amounts.peak.count,
        total_size: amounts.total.size,
        total_count: amounts.total.count,
    })
}
