//! Compares tracebacks frame by frame with gdb's at the same allocation of the same program.

use crate::support::{Outcome, Trace, has, stdout_of, victim};
use heapline_shared_format::snapshot::Snapshot;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Frames from the most recent to the oldest: (module, address in the file).
type Backtrace = Vec<(String, u64)>;

/// Backtraces by size of the block. The victims give each place of interest a different size.
type Backtraces = BTreeMap<u64, Vec<Backtrace>>;

fn gdbs(program: &Path, args: &[&Path]) -> Backtraces {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("oracles/backtraces.py");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-x"]).arg(script).arg("--args").arg(program).args(args);
    gdb.env("FIRST", "7001").env("LAST", "7199");
    let mut found = Backtraces::new();
    let mut last: Option<&mut Backtrace> = None;
    let text = stdout_of(&mut gdb);
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match *words.as_slice() {
            ["ALLOC", size] => {
                let of_size = found.entry(size.parse().expect("a size")).or_default();
                of_size.push(Backtrace::new());
                last = of_size.last_mut();
            }
            ["FRAME", address, module] => {
                let address = u64::from_str_radix(address, 16).expect("an address");
                last.as_mut().expect("a block").push((module.to_owned(), address));
            }
            _ => {}
        }
    }
    found
}

/// Heapline's backtraces: live blocks of the compared sizes, raw physical frames.
fn ours(snapshot: &Snapshot) -> Backtraces {
    let mut found = Backtraces::new();
    for group in snapshot.live.iter().filter(|g| (7001..=7199).contains(&g.size)) {
        let backtrace = frames(snapshot, group.stack);
        let of_size = found.entry(group.size).or_default();
        (0..group.count).for_each(|_| of_size.push(backtrace.clone()));
    }
    found
}

fn frames(snapshot: &Snapshot, stack: u32) -> Backtrace {
    let stack = snapshot.stacks[stack as usize];
    assert!(!stack.truncated, "walked to its root");
    let mut frames = Backtrace::new();
    let mut node = stack.leaf;
    while let Some(at) = node {
        let n = snapshot.nodes[at as usize];
        let frame = snapshot.frames[n.frame as usize];
        let module = frame.module.map(|m| &snapshot.modules[m as usize]);
        let bias = module.map_or(0, |m| m.bias);
        frames.push((module.map_or("?".to_owned(), |m| resolved(&m.path)), frame.address.wrapping_sub(bias)));
        node = n.parent;
    }
    assert_eq!(usize::from(stack.total_nframe), frames.len());
    frames
}

/// The path without symbolic links, as the kernel shows the path to gdb.
fn resolved(path: &str) -> String {
    std::fs::canonicalize(path).map_or_else(|_| path.to_owned(), |p| p.display().to_string())
}

fn trace(program: &Path, args: &[&Path]) -> Outcome {
    Trace::of(program).args(args).option("--nframe").option("1000").run().expect_code(0)
}

/// Checks that Heapline has every block of gdb with the same frames, and that `sizes` lists all
/// blocks.
fn assert_equal(program: &Path, args: &[&Path], sizes: impl Iterator<Item = u64>, what: &str) {
    let (mut theirs, mut ours) = (gdbs(program, args), ours(&trace(program, args).snapshot()));
    theirs.values_mut().chain(ours.values_mut()).for_each(|traces| traces.sort());
    assert!(theirs.keys().copied().eq(sizes), "{what}: gdb saw {:?}", theirs.keys());
    for (size, wanted) in &theirs {
        assert_eq!(ours.get(size), Some(wanted), "{what}: the block of {size} bytes");
    }
    assert!(ours.keys().eq(theirs.keys()), "{what}");
}

fn plugin() -> PathBuf {
    victim::build("plugin.c", &["-O2", "-shared", "-fPIC"])
}

/// The sizes of `unwind.c`. The plugin adds 1 to the requested size.
fn c_sizes() -> impl Iterator<Item = u64> {
    (7001..=7014).chain([7050])
}

#[test]
fn c_stacks_are_gdbs_whatever_the_optimization() {
    if !has("gdb") {
        return;
    }
    let plugin = plugin();
    for flags in [
        &["-O0"][..],
        &["-O2"],
        &["-O2", "-fomit-frame-pointer"],
        &["-O2", "-fno-omit-frame-pointer"],
        &["-O3", "-fno-asynchronous-unwind-tables", "-funwind-tables"],
        &["-O2", "-no-pie"],
    ] {
        let program = victim::build("unwind.c", flags);
        assert_equal(&program, &[&plugin], c_sizes(), &format!("{flags:?}"));
    }
}

#[test]
fn stripped_stacks_are_gdbs() {
    if !has("gdb") {
        return;
    }
    let program = victim::stripped(&victim::build("unwind.c", &["-O2"]));
    assert_equal(&program, &[&victim::stripped(&plugin())], c_sizes(), "stripped");
}

#[test]
fn cxx_stacks_with_exceptions_in_flight_are_gdbs() {
    if !has("gdb") {
        return;
    }
    for level in ["-O0", "-O2"] {
        assert_equal(&victim::build("unwind.cpp", &[level]), &[], 7101..=7108, level);
    }
}
