//! From a cut of the table to a file: copied, built, named, written.

pub mod build;
pub mod cut;
pub mod names;
pub mod replaced;
mod threads;
pub mod write;

/// Returns a snapshot without any row.
#[cfg(test)]
pub fn empty_for_tests() -> heapline_shared_format::snapshot::Snapshot {
    use heapline_shared_format::snapshot::{Begun, End, Meta, Names, Snapshot};
    let meta = Meta {
        pid: 1,
        command: String::new(),
        executable: String::new(),
        taken_at: String::new(),
        heapline: String::new(),
        sample_interval: 0,
        nframe: 1,
        begun: Begun::Start,
        end: End::Running,
        exit_status: None,
        lost: Default::default(),
        contradictions: Default::default(),
        untracked_frees: 0,
        in_realloc: 0,
        target_bytes: 0,
        aggregator_bytes: 0,
        notes: Vec::new(),
        unseen: Vec::new(),
    };
    Snapshot {
        meta,
        origin: None,
        modules: Vec::new(),
        codes: Vec::new(),
        frames: Vec::new(),
        by_frame_pointer: Vec::new(),
        nodes: Vec::new(),
        stacks: Vec::new(),
        mixed: Vec::new(),
        sampled: Vec::new(),
        calls: Vec::new(),
        threads: Vec::new(),
        domains: Vec::new(),
        live: Vec::new(),
        totals: Vec::new(),
        thread_totals: Vec::new(),
        draws: None,
        names: Names::default(),
    }
}
