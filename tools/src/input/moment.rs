//! Moments of a snapshot, and the row of a domain.

use heapline_shared_format::snapshot::{Domain, DomainTotals, Snapshot};

/// Moment of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum At {
    /// Those that live at the snapshot.
    Live,
    /// Those that lived at the moment of the domain's peak.
    Peak,
    /// All that were allocated since the start.
    Total,
}

impl At {
    /// Name of the moment on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            At::Live => "live",
            At::Peak => "peak",
            At::Total => "total",
        }
    }
}

/// Row of a domain in a snapshot; zeros if there is no such row.
pub fn totals(snapshot: &Snapshot, domain: Domain) -> DomainTotals {
    let none = DomainTotals { domain, current: 0, peak: 0, blocks: 0, allocs: 0, frees: 0, allocated_bytes: 0 };
    snapshot.domains.iter().find(|row| row.domain == domain).copied().unwrap_or(none)
}
