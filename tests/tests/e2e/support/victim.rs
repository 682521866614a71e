//! Victims: tiny programs in C and C++ under `tests/victims`, compiled when a test first needs them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the sources.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("victims")
}

/// Path of the source `name`, as debug information has it.
pub fn source(name: &str) -> PathBuf {
    sources().join(name)
}

/// Number of the one line of a source that ends with `marker`, from 1: victims mark their lines in comments.
pub fn line_of(name: &str, marker: &str) -> u64 {
    let text = std::fs::read_to_string(source(name)).expect("a victim's source");
    let lines: Vec<u64> = (1..).zip(text.lines()).filter(|(_, l)| l.ends_with(marker)).map(|(n, _)| n).collect();
    let &[line] = lines.as_slice() else { panic!("{name} has the marker {marker} on lines {lines:?}") };
    line
}

/// Compiles `name` with `flags` into a program, or with `-shared` into a library.
///
/// Debug information is on, and `malloc` is no builtin: a compiler that knows it removes a block that is not used.
pub fn build(name: &str, flags: &[&str]) -> PathBuf {
    let compiler = if name.ends_with(".cpp") { "g++" } else { "gcc" };
    let source = source(name);
    let text = std::fs::read(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    let mut hash = DefaultHasher::new();
    (&text, flags, compiler, "-fno-builtin").hash(&mut hash);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("victims").join(format!("{:016x}", hash.finish()));
    let stem = name.split('.').next().expect("a name");
    let built = directory.join(stem);
    if built.exists() {
        return built;
    }
    std::fs::create_dir_all(&directory).expect("a folder for victims");
    // Another test may compile the same: whoever is last puts an equal file in place.
    let mine = directory.join(format!("{stem}.{}.{:?}", std::process::id(), std::thread::current().id()));
    let mut command = Command::new(compiler);
    command
        .args(["-g", "-Wall", "-Wno-unused-result", "-fno-builtin", "-o"])
        .arg(&mine)
        .arg(&source)
        .args(flags)
        .arg("-pthread");
    let output = command.output().unwrap_or_else(|e| panic!("{compiler}, which the tests need: {e}"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&mine, &built).expect("within one folder");
    built
}

/// A copy of `program` without symbols and debug information.
pub fn stripped(program: &Path) -> PathBuf {
    let stripped = program.with_extension("stripped");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(program).status().expect("strip runs");
    assert!(status.success());
    stripped
}
