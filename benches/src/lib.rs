//! What the programs of this folder have in common: `compare` sets whole programs beside other tools, `curves` shows how
//! Heapline's cost grows.

#![deny(unsafe_code)]

pub mod machine;
pub mod process;

use std::path::Path;

/// This crate's folder in the checkout it was built from: the workloads and the kept runs are there.
pub fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
