//! Shared code of the programs in this folder. `compare` compares whole programs under several
//! tools, `curves` shows the growth of Heapline's cost.

#![deny(unsafe_code)]

pub mod machine;
pub mod process;

use std::path::Path;

/// Returns this crate's folder in the checkout of the build. It contains the workloads and the
/// stored runs.
pub fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
