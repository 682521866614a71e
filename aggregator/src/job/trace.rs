//! Begin of a trace and place of the snapshot, for clients of the control socket.

use heapline_shared_format::snapshot::Begun;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Begin of a trace and place of the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Time when the aggregator began to trace the process: RFC 3339, UTC.
    pub since: String,
    /// Begin of the trace.
    pub begun: Begun,
    /// Process id of the parent, for a child of a followed process.
    pub parent: Option<u32>,
    /// Number of blocks live at the fork, by domain, for a forked child.
    pub inherited: Option<BTreeMap<String, u64>>,
    /// Path of the last snapshot; for a child the folder of the snapshot.
    pub output: String,
}
