//! The snapshot: everything that `report` needs, in one file that explains itself.
//!
//! [`model`] is what a snapshot says; [`write`](write()) and [`read`](read()) turn it into a zstd file of versioned,
//! checksummed sections and back. Nothing in it refers to the machine that it was taken on but module paths and
//! build-ids.
//!
//! ```text
//! one zstd frame with content checksum:
//!   "HEAPSNAP"   u32 version
//!   section ...  tag [u8; 4] | u32 version | u64 payload bytes | payload | u32 CRC-32 of the payload
//!   "END "       a section too; its payload is the number of sections before it
//! ```
//!
//! Fixed-width numbers are little-endian. Tables are a count and rows of LEB128 varints; `docs/formats.md` draws them.

mod check;
mod error;
mod lines;
pub mod model;
mod payload;
mod read;
mod stream;
mod varint;
pub mod weight;
mod write;

pub use error::ReadError;
pub use model::*;
pub use read::read;
pub use write::write;

/// First bytes inside the zstd frame.
pub const MAGIC: [u8; 8] = *b"HEAPSNAP";
/// Version of the frame's layout: magic, sections, their order. Additions of sections do not change it.
pub const VERSION: u32 = 1;

/// The sections, in the order of the file: each table stands behind those that it refers to.
mod section {
    /// [`Meta`](super::Meta) as JSON.
    pub const META: [u8; 4] = *b"META";
    /// [`Origin`](super::Origin) as JSON; only of child processes that were followed.
    pub const ORIGIN: [u8; 4] = *b"ORIG";
    pub const MODULES: [u8; 4] = *b"MODS";
    /// Only where there are Python frames.
    pub const CODES: [u8; 4] = *b"CODE";
    pub const FRAMES: [u8; 4] = *b"FRMS";
    pub const NODES: [u8; 4] = *b"NODE";
    pub const STACKS: [u8; 4] = *b"STAK";
    /// Only where native stacks have Python ones beside them.
    pub const MIXED: [u8; 4] = *b"MIXD";
    pub const THREADS: [u8; 4] = *b"THRD";
    /// Two tables: stacks of samples, and what threads did; only where samples were recorded.
    pub const SAMPLED: [u8; 4] = *b"SMPL";
    pub const DOMAINS: [u8; 4] = *b"DOMS";
    pub const LIVE: [u8; 4] = *b"LIVE";
    pub const TOTALS: [u8; 4] = *b"TOTS";
    /// Rows of DOMS, LIVE and TOTS that are about reserved ranges, a domain that came later; only where there are any.
    pub const RESERVED: [u8; 4] = *b"RSVD";
    /// Which process drew which samples; only where samples were recorded and a process has forked
    /// or was forked.
    pub const DRAWS: [u8; 4] = *b"DRAW";
    pub const END: [u8; 4] = *b"END ";

    /// What every snapshot has between its head and its end.
    pub const REQUIRED: [[u8; 4]; 9] = [META, MODULES, FRAMES, NODES, STACKS, THREADS, DOMAINS, LIVE, TOTALS];
    /// Version of each section that this crate writes, and the highest that it reads.
    pub const VERSION: u32 = 1;
}
