//! Builds the collector's library, which the aggregator carries.
//!
//! The build runs a nested cargo:
//!
//! - with a separate target folder, because the outer cargo locks the outer target folder
//! - without the outer flags and wrappers, because the library has a separate profile

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    for source in ["../collector", "../shared-format/src", "../shared-format/Cargo.toml"] {
        watch(&here.join(source));
    }
    let target = out.join("preload");
    let status = Command::new(variable("CARGO"))
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(here.join("../collector/preload/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo, which runs this, can be run");
    assert!(status.success(), "the collector's library was not built; the lines above say why");
    let library = target.join("release/libheapline_preload.so");
    println!("cargo::rustc-env=HEAPLINE_PRELOAD={}", library.display());
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Requests a rebuild after any change under `path`, except in folders named `target`.
fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
    let Ok(entries) = path.read_dir() else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != "target") {
        watch(&entry.path());
    }
}
