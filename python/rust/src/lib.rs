//! The compiled half of the Python package `heapline`: what is too slow, or not wanted, in Python.
//!
//! `snapshot` reads snapshots and groups, filters and compares what they hold by the code of `report`, so that both
//! always say the same; a row becomes Python objects when it is looked at, not before. `control` asks the aggregator
//! of a process, and makes no Python objects on the way, which would be counted.
//!
//! It knows nothing of tracemalloc's classes: the Python half makes those of the tuples that it gets.
#![deny(unsafe_code)]

mod columns;
mod control;
mod filters;
mod names;
mod rows;
mod snapshot;

use pyo3::prelude::*;

/// `heapline._native`
#[pymodule]
#[pyo3(name = "_native")]
mod native {
    #[pymodule_export]
    use crate::control::{allow_tracing_by, ask, figures};
    #[pymodule_export]
    use crate::rows::{Statistics, Traces};
    #[pymodule_export]
    use crate::snapshot::Snapshot;
}
