//! The programs under test, built once by the cargo that runs the tests.

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

/// Builds the programs (release: what users run), or takes them from `HEAPLINE_BIN_DIR`.
///
/// A test of one crate cannot ask cargo for another crate's programs (`CARGO_BIN_EXE_*` knows its own only), so the
/// tests run cargo again and read from its messages where the programs are. Cargo's own lock makes processes take
/// turns; a second run finds everything fresh.
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

fn build() -> Programs {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace())
        .args(["build", "--release", "-p", "heapline-aggregator", "-p", "heapline-tools", "--bins"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "the programs do not build");
    let messages = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let find = |name: &str| {
        messages
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|m| m["reason"] == "compiler-artifact" && m["target"]["name"] == name)
            .find_map(|m| m["executable"].as_str().map(PathBuf::from))
            .unwrap_or_else(|| panic!("cargo built no program called {name}"))
    };
    Programs { aggregator: find("aggregator"), report: find("report") }
}
