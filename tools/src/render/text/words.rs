//! Figures in words: sizes and numbers, exact or estimated.

use heapline_shared_format::text::{counted, size};

/// Formats a number of bytes; an estimate with its interval.
pub(super) fn estimated_size(bytes: u64, interval: Option<(u64, u64)>) -> String {
    match interval {
        None => size(bytes),
        Some((from, to)) => format!("~{} ({} to {})", size(bytes), size(from), size(to)),
    }
}

/// Formats a number of things; an estimate with its interval.
pub(super) fn estimated_count(count: u64, noun: &str, interval: Option<(u64, u64)>) -> String {
    match interval {
        None => counted(count, noun),
        Some((from, to)) => format!("~{} ({from} to {to})", counted(count, noun)),
    }
}
