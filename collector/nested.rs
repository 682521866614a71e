//! A nested cargo, for build scripts: the collector is one object with a profile of its own.
//!
//! The nested cargo has a target folder of its own, since the outer cargo holds the lock of the
//! usual folder. The outer cargo's flags, wrappers and linker are left out: the collector is linked
//! by the machine's C compiler, whatever links the program that carries the collector.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns a variable that cargo sets for build scripts.
pub fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Returns the folder of the package that is built.
pub fn package() -> PathBuf {
    PathBuf::from(variable("CARGO_MANIFEST_DIR"))
}

/// Builds the package at `manifest` in release mode, with `options`, into a folder of this name
/// below the script's own folder. Returns the folder.
pub fn build(manifest: &Path, name: &str, options: &[&str]) -> PathBuf {
    let target = PathBuf::from(variable("OUT_DIR")).join(name);
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--release", "--locked", "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(&target).args(options);
    let flags_and_wrappers =
        ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];
    for (name, _) in env::vars_os() {
        // CARGO_TARGET_<TRIPLE>_LINKER, _RUSTFLAGS, _RUNNER
        let is_of_target = name.to_string_lossy().starts_with("CARGO_TARGET_");
        if is_of_target || flags_and_wrappers.iter().any(|outer| name == *outer) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().expect("cargo, which runs this, can be run");
    assert!(status.success(), "the collector was not built; the lines above say why");
    target
}

/// Rebuilds when a file at or below `path` changes, except for files that a build leaves there.
pub fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
    let Ok(entries) = path.read_dir() else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != "target") {
        watch(&entry.path());
    }
}
