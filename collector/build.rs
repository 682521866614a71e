//! Builds the collector that `Traced` links into a program.
//!
//! The script runs a nested cargo with a target folder of its own, since the outer cargo holds the
//! lock of its folder. The nested cargo runs without the outer cargo's flags and wrappers: the
//! collector is one object with its own profile and panic handler, whatever the program is built
//! with.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let has = |name: &str| env::var_os(name).is_some();
    let is_supported = variable("CARGO_CFG_TARGET_OS") == "linux" && variable("CARGO_CFG_TARGET_ARCH") == "x86_64";
    if !has("CARGO_FEATURE_TRACED") || has("CARGO_FEATURE_EMBEDDED") || !is_supported {
        return;
    }
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    for source in ["src", "embedded", "Cargo.toml", "../shared-format/src", "../shared-format/Cargo.toml"] {
        watch(&here.join(source));
    }
    let target = PathBuf::from(variable("OUT_DIR")).join("embedded");
    let triple = variable("TARGET");
    let status = Command::new(variable("CARGO"))
        .args(["build", "--release", "--locked", "--target", &triple, "--manifest-path"])
        .arg(here.join("embedded/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo, which runs this, can be run");
    assert!(status.success(), "the collector was not built; the lines above say why");
    println!("cargo::rustc-link-search=native={}", target.join(triple).join("release").display());
    println!("cargo::rustc-link-lib=static=heapline_embedded");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Rebuilds when anything under `path` changes, except for the products of a build.
fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
    let Ok(entries) = path.read_dir() else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != "target") {
        watch(&entry.path());
    }
}
