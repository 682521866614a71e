//! The compiled half of the Python package `heapline`: the parts too slow, or not wanted, in
//! Python.
//!
//! - `snapshot` reads snapshots, and groups, filters and compares their content with the code of
//!   `report`, so that both always agree. A row becomes Python objects only on access.
//! - `control` asks the aggregator of a process. It makes no Python objects on the way, because
//!   they would be counted.
//! - `spoken` says what the program says of itself: pools and pauses.
//!
//! The module does not know tracemalloc's classes: the Python half makes them from returned tuples.
#![deny(unsafe_code)]

mod columns;
mod control;
mod filters;
mod names;
mod rows;
mod snapshot;
mod spoken;

use pyo3::prelude::*;

/// `heapline._native`
#[pymodule]
#[pyo3(name = "_native")]
mod native {
    #[pymodule_export]
    use crate::control::{allow_tracing_by, ask, figures, is_answered};
    #[pymodule_export]
    use crate::rows::{Statistics, Traces};
    #[pymodule_export]
    use crate::snapshot::Snapshot;
    #[pymodule_export]
    use crate::spoken::{pause, resume, track, untrack};
}
