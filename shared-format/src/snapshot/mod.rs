//! The snapshot: a self-contained file with all data needed by `report`.
//!
//! [`model`] is the content of a snapshot. [`write`](write()) turns the content into a zstd file of
//! versioned, checksummed sections; [`read`](read()) turns the file back. The file refers to the
//! machine where it was taken only by module paths and build-ids.
//!
//! ```text
//! a zstd frame with content checksum:
//!   "HEAPSNAP"   u32 version
//!   section ...  tag [u8; 4] | u32 version | u64 payload bytes | payload | u32 CRC-32 (payload)
//!   "END "       a section too; its payload is the number of sections before it
//! ```
//!
//! Fixed-width numbers are little-endian. A table is a count and rows of LEB128 varints;
//! `docs/formats.md` draws the tables.

mod check;
mod domain;
mod error;
pub mod history;
mod lines;
pub mod model;
mod payload;
pub mod pools;
mod read;
mod stream;
mod varint;
pub mod weight;
mod write;

pub use error::ReadError;
pub use history::History;
pub use model::*;
pub use read::read;
pub use write::write;

/// First bytes inside the zstd frame.
pub const MAGIC: [u8; 8] = *b"HEAPSNAP";
/// Version of the frame's layout: magic, sections, order of sections. A new section does not change
/// the version.
pub const VERSION: u32 = 1;

/// The sections, in the order of the file. Each table stands behind the tables it refers to.
mod section {
    /// [`Meta`](super::Meta) as JSON.
    pub const META: [u8; 4] = *b"META";
    /// [`Origin`](super::Origin) as JSON; only in snapshots of followed child processes.
    pub const ORIGIN: [u8; 4] = *b"ORIG";
    pub const MODULES: [u8; 4] = *b"MODS";
    /// Python code objects; only with Python frames.
    pub const CODES: [u8; 4] = *b"CODE";
    pub const FRAMES: [u8; 4] = *b"FRMS";
    /// Frames left by frame pointers; only when there are any.
    pub const WALKED: [u8; 4] = *b"WALK";
    pub const NODES: [u8; 4] = *b"NODE";
    pub const STACKS: [u8; 4] = *b"STAK";
    /// Python stacks beside native stacks; only when there are any.
    pub const MIXED: [u8; 4] = *b"MIXD";
    pub const THREADS: [u8; 4] = *b"THRD";
    /// Two tables: stacks of samples, and calls of threads. Only in snapshots with samples.
    pub const SAMPLED: [u8; 4] = *b"SMPL";
    pub const DOMAINS: [u8; 4] = *b"DOMS";
    pub const LIVE: [u8; 4] = *b"LIVE";
    pub const TOTALS: [u8; 4] = *b"TOTS";
    /// Sums per thread. Not in snapshots of older Heaplines, and only when there are any.
    pub const THREAD_TOTALS: [u8; 4] = *b"THTO";
    /// Rows of DOMS, LIVE and TOTS about reserved ranges, a domain added later. Only when there are
    /// any.
    pub const RESERVED: [u8; 4] = *b"RSVD";
    /// Which process drew which samples. Only in snapshots with samples, of a process that has
    /// forked or was forked.
    pub const DRAWS: [u8; 4] = *b"DRAW";
    /// Three tables: texts, modules and frames with names. Only when names were looked up.
    pub const NAMES: [u8; 4] = *b"NAME";
    /// Names of pools, and rows of DOMS, LIVE and TOTS about pools. Only when there are any.
    pub const POOLS: [u8; 4] = *b"POOL";
    /// Memory over time: head, steps and marks. Not in snapshots of older Heaplines, and only when
    /// a history was recorded.
    pub const HISTORY: [u8; 4] = *b"HIST";
    pub const END: [u8; 4] = *b"END ";

    /// The sections of every snapshot, between head and end.
    pub const REQUIRED: [[u8; 4]; 9] = [META, MODULES, FRAMES, NODES, STACKS, THREADS, DOMAINS, LIVE, TOTALS];
    /// Version of each written section, and the highest version that can be read.
    pub const VERSION: u32 = 1;
}
