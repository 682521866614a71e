//! Why a file could not be read as a snapshot.

use std::io;

/// Each says what, why and what to do in one line, without the file's name, which the caller knows.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The first bytes are not zstd's.
    #[error("not a snapshot, since it is no zstd file: give a *.snap.zst that the aggregator wrote")]
    NotZstd,
    /// A zstd file of something else.
    #[error("a zstd file, but not a Heapline snapshot: give a *.snap.zst that the aggregator wrote")]
    Foreign,
    /// Written by a later version.
    #[error(
        "{part} has version {found}, newer than version {wanted} that this program reads: use the report of the \
         Heapline that wrote it, or a later one"
    )]
    Newer {
        /// The snapshot itself, or one of its sections.
        part: String,
        /// Version in the file.
        found: u32,
        /// Highest version that can be read.
        wanted: u32,
    },
    /// The file ends too early.
    #[error("truncated in {section}: the file was cut short; copy it again or take a new snapshot")]
    Truncated {
        /// Where the file ends.
        section: String,
    },
    /// A section's bytes are not those that were written.
    #[error("the checksum of {section} is wrong: the file was damaged; copy it again or take a new snapshot")]
    Checksum {
        /// The damaged section.
        section: String,
    },
    /// The compressed data itself is damaged.
    #[error("damaged in {section} (zstd: {reason}): copy the file again or take a new snapshot")]
    Damaged {
        /// Where the damage shows.
        section: String,
        /// zstd's words.
        reason: String,
    },
    /// The checksum is right and the content impossible.
    #[error("corrupt in {section}: {what}; it was not written by Heapline, or by one with a bug: take a new snapshot")]
    Corrupt {
        /// The section.
        section: String,
        /// The row and what is wrong with it.
        what: String,
    },
    /// A small file that expands enormously; no snapshot does.
    #[error("refused in {section}: it expands to over {bytes} bytes, as no snapshot of its size does; take a new one")]
    Oversized {
        /// Where the limit was met.
        section: String,
        /// The limit, in bytes.
        bytes: u64,
    },
    /// The file could not be read.
    #[error("reading failed: {0}; check the file and its device")]
    Io(io::Error),
}
