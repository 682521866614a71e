//! Terms of all records: the width of an address, the numbers of domains, decoding errors.

pub use crate::arch::elf::ADDRESS_BITS;

/// Bits of a stamp.
pub const STAMP_BITS: u32 = 60;

/// The layers of memory recorded by a collector.
pub mod domain {
    /// malloc and related functions.
    pub const NATIVE: u8 = 0;
    /// CPython's allocators.
    pub const PYTHON: u8 = 1;
    /// Number of layers.
    pub const COUNT: usize = 2;
}

/// Why words are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The kind is unknown to this version.
    UnknownKind(u8),
    /// The record reaches beyond the published words.
    Cut,
    /// A length or number is impossible for a collector.
    Malformed,
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            DecodeError::UnknownKind(kind) => write!(f, "record of unknown kind {kind}"),
            DecodeError::Cut => f.write_str("record cut short"),
            DecodeError::Malformed => f.write_str("record with impossible lengths"),
        }
    }
}

impl core::error::Error for DecodeError {}
