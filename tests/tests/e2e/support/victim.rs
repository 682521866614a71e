//! Victims: tiny programs in C, C++ and Rust under `tests/victims`, compiled when a test first
//! needs them.

use super::{has, programs, stdout_of};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the sources.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("victims")
}

/// Path of the source `name`, as in debug information.
pub fn source(name: &str) -> PathBuf {
    sources().join(name)
}

/// Number, from 1, of the single line of a source that ends with `marker`. Victims mark lines with
/// comments at the line's end.
pub fn line_of(name: &str, marker: &str) -> u64 {
    let text = std::fs::read_to_string(source(name)).expect("a victim's source");
    let lines: Vec<u64> = (1..).zip(text.lines()).filter(|(_, l)| l.ends_with(marker)).map(|(n, _)| n).collect();
    let &[line] = lines.as_slice() else { panic!("{name} has the marker {marker} on lines {lines:?}") };
    line
}

/// Compiles `name` with `flags` into a program, or with `-shared` into a library.
///
/// Debug information is on. `malloc` is no builtin, because a compiler with a builtin `malloc`
/// removes unused blocks.
pub fn build(name: &str, flags: &[&str]) -> PathBuf {
    build_by(if name.ends_with(".cpp") { "g++" } else { "gcc" }, name, flags)
}

/// Compiles `name` with `flags` for musl. `None` where no compiler for musl is installed.
pub fn build_for_musl(name: &str, flags: &[&str]) -> Option<PathBuf> {
    has("musl-gcc").then(|| build_by("musl-gcc", name, flags))
}

fn build_by(compiler: &str, name: &str, flags: &[&str]) -> PathBuf {
    let source = source(name);
    let text = std::fs::read(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    once(name, (&text, flags, compiler, "-fno-builtin"), |program| {
        let mut command = Command::new(compiler);
        command.args(["-g", "-Wall", "-Wno-unused-result", "-fno-builtin", "-o"]).arg(program);
        // Before glibc 2.34, threads and dlopen are libraries of their own.
        command.arg(&source).args(flags).args(["-pthread", "-ldl"]);
        command
    })
}

/// Compiles the Rust source `name` with `flags` and the collector's library.
pub fn build_rust(name: &str, flags: &[&str]) -> PathBuf {
    build_rust_with(("heapline_collector", programs::collector_library()), name, flags)
}

/// Compiles the Rust source `name` with the library by which a program calls Heapline.
pub fn build_rust_with_api(name: &str) -> PathBuf {
    build_rust_with(("heapline", programs::api_library()), name, &["-O"])
}

fn build_rust_with((library_name, library): (&str, &Path), name: &str, flags: &[&str]) -> PathBuf {
    let source = source(name);
    let [text, linked] = [&source, library].map(|path| std::fs::read(path).expect("a readable file"));
    once(name, (&text, flags, &linked), |program| {
        let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        command.current_dir(programs::workspace()).args(["--edition", "2024", "-g", "-o"]).arg(program);
        command.arg("--extern").arg(format!("{library_name}={}", library.display()));
        command.arg("-L").arg(format!("dependency={}", library.with_file_name("deps").display()));
        command.arg(source.canonicalize().expect("it was just read")).args(flags);
        command
    })
}

/// Path of the program built by `compile`. Each `identity` is built once.
fn once(name: &str, identity: impl Hash, compile: impl FnOnce(&Path) -> Command) -> PathBuf {
    let mut hash = DefaultHasher::new();
    identity.hash(&mut hash);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("victims").join(format!("{:016x}", hash.finish()));
    let stem = name.split('.').next().expect("a name");
    let built = directory.join(stem);
    if built.exists() {
        return built;
    }
    std::fs::create_dir_all(&directory).expect("a folder for victims");
    // Another test may compile the same program at the same time: the last rename puts an equal
    // file in place. Each build has a separate folder, because rustc writes other files beside the
    // program.
    let own = tempfile::TempDir::new_in(&directory).expect("a folder within it");
    let mine = own.path().join(stem);
    let mut command = compile(&mine);
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}, which the tests need: {e}"));
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

/// Copies a program and its libraries to the same paths below `root`.
pub fn copy_with_libraries(program: &Path, root: &Path) {
    let listed = stdout_of(Command::new("ldd").arg(program));
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for file in libraries.chain([program]) {
        let copy = root.join(file.strip_prefix("/").expect("an absolute path"));
        std::fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder");
        // By another process: a program that this process has open for writing cannot be run.
        stdout_of(Command::new("cp").arg(file).arg(copy));
    }
}
