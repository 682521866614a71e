//! Errors in reading a snapshot file.

use std::io;

/// Why a file could not be read as a snapshot. Each message states the fact, the reason and the
/// remedy in a line, without the file's name: the caller knows the name.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file does not begin like a zstd file.
    #[error("not a snapshot, since it is no zstd file: give a *.snap.zst that the aggregator wrote")]
    NotZstd,
    /// The zstd file is not a snapshot.
    #[error("a zstd file, but not a Heapline snapshot: give a *.snap.zst that the aggregator wrote")]
    Foreign,
    /// A later version wrote the file.
    #[error(
        "{part} has version {found}, newer than version {wanted} that this program reads: use the report of the \
         Heapline that wrote it, or a later one"
    )]
    Newer {
        /// The whole snapshot, or the name of a section.
        part: String,
        /// Version in the file.
        found: u32,
        /// Highest readable version.
        wanted: u32,
    },
    /// The file ends too early.
    #[error("truncated in {section}: the file was cut short; copy it again or take a new snapshot")]
    Truncated {
        /// Section where the file ends.
        section: String,
    },
    /// The bytes of a section differ from the written bytes.
    #[error("the checksum of {section} is wrong: the file was damaged; copy it again or take a new snapshot")]
    Checksum {
        /// The damaged section.
        section: String,
    },
    /// The compressed data is damaged.
    #[error("damaged in {section} (zstd: {reason}): copy the file again or take a new snapshot")]
    Damaged {
        /// Section where the damage shows.
        section: String,
        /// Message of zstd.
        reason: String,
    },
    /// The checksum is right, but the content is impossible.
    #[error("corrupt in {section}: {what}; it was not written by Heapline, or by one with a bug: take a new snapshot")]
    Corrupt {
        /// The corrupt section.
        section: String,
        /// The row and the error in the row.
        what: String,
    },
    /// A small file expands enormously, unlike any snapshot.
    #[error("refused in {section}: it expands to over {bytes} bytes, as no snapshot of its size does; take a new one")]
    Oversized {
        /// Section where the limit was met.
        section: String,
        /// The limit, in bytes.
        bytes: u64,
    },
    /// The file could not be read.
    #[error("reading failed: {0}; check the file and its device")]
    Io(io::Error),
}
