//! The programs under test, built by the cargo that runs the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Paths of the built programs.
pub struct Programs {
    pub aggregator: PathBuf,
    pub report: PathBuf,
}

/// The root of the checkout.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Builds the programs in release mode, as users run them, or takes them from `HEAPLINE_BIN_DIR`.
///
/// A test of a crate cannot ask cargo for another crate's programs, because `CARGO_BIN_EXE_*` knows
/// only programs of the same crate. So the tests run cargo again and read the programs' paths from
/// cargo's messages. Cargo's lock makes processes take turns, and a second run finds everything up
/// to date.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| match std::env::var_os("HEAPLINE_BIN_DIR") {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            Programs { aggregator: dir.join("aggregator"), report: dir.join("report") }
        }
        None => build(),
    })
}

/// The library of the collector, for programs with a built-in collector
/// (`heapline_collector::Traced`).
pub fn collector_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| library("heapline-collector", "heapline_collector"))
}

/// The library by which a program calls Heapline.
pub fn api_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| library("heapline", "heapline"))
}

fn library(package: &str, name: &str) -> PathBuf {
    let artifacts = cargo_build(&["-p", package, "--lib"]);
    let files = artifacts.iter().filter(|m| m["target"]["name"] == name);
    files
        .flat_map(|m| m["filenames"].as_array().cloned().unwrap_or_default())
        .find_map(|file| file.as_str().filter(|file| file.ends_with(".rlib")).map(PathBuf::from))
        .expect("cargo built the library")
}

fn build() -> Programs {
    let artifacts = cargo_build(&["-p", "heapline-aggregator", "-p", "heapline-tools", "--bins"]);
    let find = |name: &str| {
        let named = artifacts.iter().filter(|m| m["target"]["name"] == name);
        named
            .filter_map(|m| m["executable"].as_str().map(PathBuf::from))
            .next()
            .unwrap_or_else(|| panic!("cargo built no program called {name}"))
    };
    Programs { aggregator: find("aggregator"), report: find("report") }
}

/// Cargo's messages about each built or up-to-date artifact.
fn cargo_build(what: &[&str]) -> Vec<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).args(["build", "--release"]).args(what);
    command.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "{what:?} does not build");
    let messages = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages.filter(|m| m["reason"] == "compiler-artifact").collect()
}
