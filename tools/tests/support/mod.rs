//! What several test files need: programs that are compiled here, and snapshots of what they might have done.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the test programs' sources are.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Compiles a test program into `dir`; the compiler goes by the source's extension.
pub fn compile(dir: &Path, name: &str, options: &[&str]) -> PathBuf {
    let program = dir.join(Path::new(name).file_stem().unwrap());
    let compiler = match Path::new(name).extension().and_then(|extension| extension.to_str()) {
        Some("c") => "gcc",
        Some("cpp") => "g++",
        _ => "rustc",
    };
    run(Command::new(compiler).args(options).arg("-o").arg(&program).arg(source(name)));
    program
}

/// The GNU build-id of a file, as readelf reads it.
pub fn build_id(file: &Path) -> Vec<u8> {
    let text = String::from_utf8(run(Command::new("readelf").arg("-n").arg(file)).stdout).unwrap();
    let hex = text.split("Build ID: ").nth(1).map_or("", |rest| rest.lines().next().unwrap_or("").trim());
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}
