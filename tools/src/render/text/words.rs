//! Figures, moments and ends in words.

use crate::input::moment::At;
use crate::query::view::View;
use heapline_shared_format::snapshot::{Begun, End, Meta};
use heapline_shared_format::text::{counted, size};
use signal_hook::low_level::signal_name;

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

/// Mark in front of an estimate.
pub(super) fn about(is_estimate: bool) -> &'static str {
    if is_estimate { "~" } else { "" }
}

/// Names the blocks of a view: "native memory live at the peak". `begun` is the begin of the trace.
pub fn blocks_of(view: View, begun: Begun) -> String {
    let domain = view.domain;
    match view.at {
        At::Live => format!("{domain} memory live at the snapshot"),
        At::Peak => format!("{domain} memory live at the peak"),
        At::Total => format!("{domain} memory allocated {}", begun.since()),
        At::Instant(instant) => format!("{domain} memory live at {}", instant.time()),
    }
}

/// Formats how a process ended.
pub(super) fn end(meta: &Meta) -> String {
    match (meta.end, meta.exit_status) {
        (End::Running, _) => "running".to_string(),
        (End::Exited, Some(status)) => format!("exited with status {status}"),
        (End::Exited, None) => "exited".to_string(),
        (End::Killed, Some(status)) if status > 128 => match signal_name(status - 128) {
            Some(name) => format!("killed by {name}"),
            None => format!("killed by signal {}", status - 128),
        },
        (End::Killed, _) => "killed by a signal".to_string(),
        (End::Detached, _) => "detached while it ran".to_string(),
        (End::Stalled, _) => "stopped tracing before its end".to_string(),
    }
}
