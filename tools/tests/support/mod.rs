//! Common parts of the test files: compiling test programs, and reading them with binutils.

#![allow(dead_code, reason = "each test file is a program of its own and needs a part of this")]

pub mod page;
pub mod scene;
pub mod snapshot;

use heapline_tools::symbols::Location;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Returns the path of a test program's source.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Compiles a test program into `dir`. The source's extension selects the compiler.
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

/// Returns the GNU build-id of a file, as read by readelf.
pub fn build_id(file: &Path) -> Vec<u8> {
    let text = String::from_utf8(run(Command::new("readelf").arg("-n").arg(file)).stdout).unwrap();
    let hex = text.split("Build ID: ").nth(1).map_or("", |rest| rest.lines().next().unwrap_or("").trim());
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Returns address and text of all instructions, as seen by objdump.
pub fn instructions(program: &Path) -> Vec<(u64, String)> {
    let text = run(Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(program)).stdout;
    let instruction = |line: &str| {
        let (address, text) = line.split_once(":\t")?;
        Some((u64::from_str_radix(address.trim(), 16).ok()?, text.to_string()))
    };
    String::from_utf8(text).unwrap().lines().filter_map(instruction).collect()
}

/// Returns the addresses of all call instructions.
pub fn calls(program: &Path) -> Vec<u64> {
    let calls = instructions(program).into_iter().filter(|(_, text)| text.starts_with("call"));
    calls.map(|(address, _)| address).collect()
}

/// Asks addr2line for the functions at each address, innermost first, with lines if known.
pub fn addr2line(program: &Path, addresses: &[u64]) -> Vec<Vec<Location>> {
    let mut command = Command::new("addr2line");
    command.args(["-a", "-i", "-f", "-C", "-e"]).arg(program).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input: String = addresses.iter().map(|address| format!("{address:#x}\n")).collect();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    writer.join().unwrap();
    let mut answers: Vec<Vec<Location>> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            answers.push(Vec::new());
            continue;
        }
        let place = lines.next().unwrap().split(" (discriminator").next().unwrap();
        let (file, number) = place.rsplit_once(':').unwrap();
        let line_of = |number: u32| (number > 0).then(|| (cleaned(file), number));
        let location = Location { function: Some(line.to_string()), line: number.parse().ok().and_then(line_of) };
        answers.last_mut().unwrap().push(location);
    }
    answers
}

/// Removes `.` and `..` from a path by its text alone, as symbolic does.
pub fn cleaned(path: &str) -> String {
    let mut out = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out.to_str().unwrap().to_string()
}
