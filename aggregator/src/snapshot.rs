//! From a cut of the tables to the snapshot that `report` reads.

use crate::cut::{Cut, Figures};
use crate::format::rfc3339;
use crate::procfs;
use crate::table::live::Block;
use crate::table::stacks::NONE;
use crate::table::threads::Thread as TableThread;
use heapline_shared_format::snapshot::{
    Domain, End, Frame, LiveGroup, Meta, Module, Node, Snapshot, StackTotals, Thread,
};

/// What a snapshot says besides the tables.
#[derive(Clone, Debug)]
pub struct About {
    /// Process id of the target.
    pub pid: u32,
    /// How its tracing stands.
    pub end: End,
    /// Exit status, where it is known.
    pub exit_status: Option<i32>,
    /// What every report must show.
    pub notes: Vec<String>,
}

/// The snapshot of a cut.
pub fn build(cut: Cut, about: About) -> Snapshot {
    let figures = &cut.figures;
    let meta = Meta {
        pid: about.pid,
        command: figures.image.command.clone(),
        executable: figures.image.executable.clone(),
        taken_at: rfc3339(figures.taken),
        heapline: env!("CARGO_PKG_VERSION").to_owned(),
        sample_interval: 0,
        nframe: cut.nframe,
        end: about.end,
        exit_status: about.exit_status,
        lost: figures.lost.clone(),
        contradictions: figures.contradictions.by_name(),
        untracked_frees: figures.untracked_frees,
        in_realloc: figures.in_realloc,
        target_bytes: figures.target_bytes,
        aggregator_bytes: procfs::own_resident_bytes(),
        notes: about.notes.into_iter().chain(notes(figures)).collect(),
    };
    let is_over = matches!(about.end, End::Exited | End::Killed);
    let (threads, thread_index) = threads(&cut.threads, is_over);
    Snapshot {
        meta,
        modules: modules(&cut),
        frames: frames(&cut),
        nodes: nodes(&cut),
        threads,
        domains: vec![figures.native],
        totals: totals(&cut),
        live: live(cut.live, &thread_index),
        stacks: cut.tree.stacks,
    }
}

/// What a reader of the numbers should know of the tracing itself.
fn notes(figures: &Figures) -> Vec<String> {
    let (compared, differed) = figures.verified;
    let notes = [
        (
            figures.waits,
            format!("threads waited {} times for room in their rings (--max-target-memory)", figures.waits),
        ),
        (
            figures.stacks_forgotten,
            format!("a thread's table of stacks was full {} times, and was filled anew", figures.stacks_forgotten),
        ),
        (
            compared,
            format!("HEAPLINE_VERIFY: {compared} stacks compared with a fresh walk, {differed} of them differed"),
        ),
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

fn frames(cut: &Cut) -> Vec<Frame> {
    let frame =
        |frame: &crate::table::stacks::CodeFrame| Frame { address: frame.address, module: frame.module(&cut.modules) };
    cut.tree.frames.iter().map(frame).collect()
}

fn nodes(cut: &Cut) -> Vec<Node> {
    let parent = |parent| (parent != NONE).then_some(parent);
    cut.tree.nodes.iter().map(|node| Node { parent: parent(node.parent), frame: node.frame }).collect()
}

/// The threads that are alive or own live blocks, and for each of the table's its place among them.
fn threads(rows: &[TableThread], is_over: bool) -> (Vec<Thread>, Vec<u32>) {
    let mut threads = Vec::new();
    let mut index = vec![NONE; rows.len()];
    for (row, place) in rows.iter().zip(&mut index).filter(|(row, _)| row.is_needed()) {
        *place = u32::try_from(threads.len()).unwrap_or(NONE);
        threads.push(Thread { tid: row.tid, name: row.name.clone(), alive: row.is_alive() && !is_over });
    }
    (threads, index)
}

fn live(mut blocks: Vec<Block>, thread_index: &[u32]) -> Vec<LiveGroup> {
    blocks.sort_unstable_by_key(|block| (block.stack, block.thread, block.size));
    let alike = blocks.chunk_by(|a, b| (a.stack, a.thread, a.size) == (b.stack, b.thread, b.size));
    let group = |alike: &[Block]| LiveGroup {
        domain: Domain::Native,
        stack: alike[0].stack,
        thread: thread_index[alike[0].thread as usize],
        size: alike[0].size,
        count: alike.len() as u64,
    };
    alike.map(group).collect()
}

fn totals(cut: &Cut) -> Vec<StackTotals> {
    let row = |&(stack, amounts): &(u32, crate::table::totals::StackAmounts)| StackTotals {
        domain: Domain::Native,
        stack,
        peak_size: amounts.peak.size,
        peak_count: amounts.peak.count,
        total_size: amounts.total.size,
        total_count: amounts.total.count,
    };
    cut.stacks.iter().map(row).collect()
}
