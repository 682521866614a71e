//! Builds the collector's library, so that the aggregator can carry it.
//!
//! A nested cargo with a target folder of its own, since the outer one holds its lock, and without the outer one's
//! flags and wrappers, since the library has a profile of its own.

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

/// Rebuilds when anything under `path` changes, but not for what a build leaves there.
fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
    let Ok(entries) = path.read_dir() else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != "target") {
        watch(&entry.path());
    }
}
