//! Moments of a snapshot, and the row of a domain.

use crate::input::time::{Time, local};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use heapline_shared_format::snapshot::{Domain, DomainTotals, Snapshot};
use std::str::FromStr;

/// Moment of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Those that live at the snapshot.
    Live,
    /// Those that lived at the moment of the domain's peak.
    Peak,
    /// All that were allocated since the start.
    Total,
    /// Those that lived at an instant of the history. The subject is a subject of the past
    /// ([`crate::input::past`]).
    Instant(Instant),
}

/// The end of a step of the history: the instant for which the memory of each stack is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// Begin of the step, in milliseconds since 1970, UTC.
    pub begin: u64,
    /// End of the step, in milliseconds since 1970, UTC.
    pub end: u64,
    /// Local time less UTC at the place of the recording, in seconds.
    pub utc_offset: i32,
}

impl Instant {
    /// Formats the instant in the time zone of the recording.
    pub fn time(&self) -> String {
        local(self.end, self.utc_offset)
    }

    /// Describes the instant and the step: "2026-11-28T03:00:20+01:00, the end of a step of 20 s".
    pub fn described(&self) -> String {
        match self.end.saturating_sub(self.begin) {
            0 => format!("{}, the begin of the history", self.time()),
            width => format!("{}, the end of a step of {}", self.time(), span(width)),
        }
    }
}

/// Formats a time span in the largest unit that is not too coarse.
pub fn span(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..10_000 if !millis.is_multiple_of(1_000) => format!("{}.{} s", millis / 1_000, millis / 100 % 10),
        1_000..120_000 => format!("{} s", millis / 1_000),
        120_000..7_200_000 => format!("{} min", millis / 60_000),
        7_200_000..172_800_000 => format!("{} h", millis / 3_600_000),
        _ => format!("{} d", millis / 86_400_000),
    }
}

impl At {
    /// Whether the figures of the moment are the current ones of the subject.
    pub fn is_now(self) -> bool {
        matches!(self, At::Live | At::Instant(_))
    }

    /// Name of the moment on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            At::Live => "live",
            At::Peak => "peak",
            At::Total => "total",
            At::Instant(_) => "instant",
        }
    }
}

/// The moments that every snapshot has.
impl ValueEnum for At {
    fn value_variants<'a>() -> &'a [At] {
        &[At::Live, At::Peak, At::Total]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// A moment as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A moment that every snapshot has.
    At(At),
    /// A time of the history.
    Time(Time),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Moment, String> {
        let known = At::value_variants().iter().copied().find(|at| at.name() == text);
        known.map_or_else(
            || text.parse().map(Moment::Time).map_err(|error| format!("use live, peak, total, or a time: {error}")),
            |at| Ok(Moment::At(at)),
        )
    }
}

/// Row of a domain in a snapshot; zeros if there is no such row.
pub fn totals(snapshot: &Snapshot, domain: Domain) -> DomainTotals {
    let none = DomainTotals { domain, current: 0, peak: 0, blocks: 0, allocs: 0, frees: 0, allocated_bytes: 0 };
    snapshot.domains.iter().find(|row| row.domain == domain).copied().unwrap_or(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_readable_unit() {
        let spans = [10, 999, 1_000, 1_250, 10_900, 119_000, 120_000, 7_199_000, 7_200_000, 200_000_000].map(span);
        assert_eq!(spans, ["10 ms", "999 ms", "1 s", "1.2 s", "10 s", "119 s", "2 min", "119 min", "2 h", "2 d"]);
    }

    #[test]
    fn words_are_moments_and_anything_else_is_a_time() {
        assert_eq!("peak".parse(), Ok(Moment::At(At::Peak)));
        assert!(matches!("-10m".parse(), Ok(Moment::Time(_))));
        let error = "now".parse::<Moment>().expect_err("no moment");
        assert!(error.starts_with("use live, peak, total, or a time: "), "{error}");
    }
}
