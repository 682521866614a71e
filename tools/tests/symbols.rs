//! Compares names and lines with addr2line's at every call of real programs, inlined calls
//! included.

mod support;

use heapline_shared_format::snapshot::Module;
use heapline_tools::symbols::{Location, Symbolizer};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{addr2line, build_id, calls, cleaned, compile, run};
use tempfile::tempdir;

fn module(program: &Path) -> Module {
    let path = program.to_str().unwrap().to_string();
    Module { path, build_id: build_id(program), start: 0, end: u64::MAX, bias: 0, loaded: true }
}

/// Returns the last part of a function's name without arguments, parameters and clone suffixes:
/// demanglers differ in the rest.
fn base_name(name: &str) -> String {
    let mut depth = 0;
    let mut out = String::new();
    for c in name.chars() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            '(' | '[' if depth == 0 && !out.is_empty() => break,
            c if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out.rsplit([':', ' ']).next().unwrap_or("").to_string()
}

/// Makes a Symbolizer without a cache and without debug files, except files beside the module.
fn plain() -> Symbolizer {
    Symbolizer::new(Vec::new(), None)
}

/// Reduces locations to base names, files and lines, for the comparison.
fn comparable(locations: &[Location]) -> Vec<(String, Option<(String, u32)>)> {
    let line = |l: &Location| l.line.as_ref().map(|(file, line)| (cleaned(file), *line));
    let name = |l: &Location| base_name(&legible(l.function.as_deref().unwrap_or("")));
    locations.iter().map(|l| (name(l), line(l))).collect()
}

/// Demangles with c++filt if cpp_demangle has failed. cpp_demangle leaves some conditional
/// templates of the standard library (`sr` with arguments) mangled, though the function is right.
fn legible(name: &str) -> String {
    match name.starts_with("_Z") {
        true => String::from_utf8(run(Command::new("c++filt").arg(name)).stdout).unwrap().trim().to_string(),
        false => name.to_string(),
    }
}

/// Compares every call of `program` with addr2line's answer from `reference`. Returns the greatest
/// number of functions at an address.
fn compare(symbolizer: &mut Symbolizer, program: &Path, reference: &Path, calls: &[u64]) -> usize {
    let expected = addr2line(reference, calls);
    let found = symbolizer.locate(&module(program), calls);
    assert_eq!(symbolizer.take_warnings(), Vec::<String>::new());
    assert_eq!(found.len(), expected.len());
    for ((address, found), expected) in calls.iter().zip(&found).zip(&expected) {
        assert_eq!(comparable(found), comparable(expected), "{} at {address:#x}", program.display());
    }
    found.iter().map(Vec::len).max().unwrap_or(0)
}

/// Compiles a program and compares its calls. `inlines` is the least depth of inlined calls
/// expected.
fn check(name: &str, options: &[&str], inlines: usize) {
    let dir = tempdir().unwrap();
    let program = compile(dir.path(), name, options);
    let calls = calls(&program);
    assert!(calls.len() > 5, "{name}: {} calls", calls.len());
    let most = compare(&mut plain(), &program, &program, &calls);
    assert!(most >= inlines, "{name} {options:?}: at most {most} functions at an address");
}

#[test]
fn c_with_inlines_is_as_addr2line_says() {
    check("inlines.c", &["-g", "-O2"], 3);
    check("inlines.c", &["-g", "-O0"], 1);
}

#[test]
fn older_dwarf_and_compressed_sections_are_read() {
    check("inlines.c", &["-gdwarf-4", "-O2"], 3);
    check("inlines.c", &["-g", "-O2", "-gz=zlib"], 3);
}

#[test]
fn an_executable_with_a_fixed_address_is_read() {
    check("inlines.c", &["-g", "-O2", "-no-pie"], 3);
}

#[test]
fn cpp_is_as_addr2line_says() {
    check("containers.cpp", &["-g", "-O2"], 5);
}

#[test]
fn rust_is_as_addr2line_says() {
    check("shapes.rs", &["-g", "-O"], 8);
}

#[test]
fn a_bias_is_taken_off() {
    let dir = tempdir().unwrap();
    let program = compile(dir.path(), "inlines.c", &["-g", "-O2"]);
    let calls = calls(&program);
    let base = 0x7f12_3456_7000;
    let loaded: Vec<u64> = calls.iter().map(|address| address + base).collect();
    let at_base = Module { start: base, bias: base, ..module(&program) };
    assert_eq!(plain().locate(&at_base, &loaded), plain().locate(&module(&program), &calls));
}

/// Moves the debug information of `program` to the file `debug`, as distributions do.
fn split(program: &Path, debug: &Path) {
    std::fs::create_dir_all(debug.parent().unwrap()).unwrap();
    run(Command::new("objcopy").arg("--only-keep-debug").arg(program).arg(debug));
    run(Command::new("strip").arg(program));
}

fn link(program: &Path, debug: &Path) {
    run(Command::new("objcopy").arg(format!("--add-gnu-debuglink={}", debug.display())).arg(program));
}

/// Compiles a program. Returns the program, an unstripped copy, and the program's calls.
fn program_and_whole(dir: &Path) -> (PathBuf, PathBuf, Vec<u64>) {
    let program = compile(dir, "inlines.c", &["-g", "-O2", "-Wl,--build-id"]);
    let whole = dir.join("whole");
    std::fs::copy(&program, &whole).unwrap();
    let calls = calls(&program);
    (program, whole, calls)
}

#[test]
fn a_debug_file_is_found_by_build_id() {
    let dir = tempdir().unwrap();
    let (program, whole, calls) = program_and_whole(dir.path());
    let id: String = build_id(&program).iter().map(|byte| format!("{byte:02x}")).collect();
    let debug = dir.path().join("debug/.build-id").join(&id[..2]).join(format!("{}.debug", &id[2..]));
    split(&program, &debug);
    let mut symbolizer = Symbolizer::new(vec![dir.path().join("debug")], None);
    assert_eq!(compare(&mut symbolizer, &program, &whole, &calls), 3);
    // The build-id suffices, even without the program.
    let gone = Module { path: "/nowhere/inlines".to_string(), ..module(&program) };
    assert_eq!(symbolizer.locate(&gone, &calls), plain().locate(&module(&whole), &calls));
    assert_eq!(symbolizer.take_warnings(), Vec::<String>::new());
}

#[test]
fn a_debug_file_is_found_by_its_link() {
    for place in ["inlines.debug", ".debug/inlines.debug"] {
        let dir = tempdir().unwrap();
        let (program, whole, calls) = program_and_whole(dir.path());
        let debug = dir.path().join(place);
        split(&program, &debug);
        link(&program, &debug);
        assert_eq!(compare(&mut plain(), &program, &whole, &calls), 3, "{place}");
    }
    let dir = tempdir().unwrap();
    let (program, whole, calls) = program_and_whole(dir.path());
    let root = dir.path().join("root");
    let debug = root.join(dir.path().strip_prefix("/").unwrap()).join("inlines.debug");
    split(&program, &debug);
    link(&program, &debug);
    assert_eq!(compare(&mut Symbolizer::new(vec![root], None), &program, &whole, &calls), 3);
}

#[test]
fn a_linked_file_with_another_checksum_is_not_taken() {
    let dir = tempdir().unwrap();
    let (program, _, calls) = program_and_whole(dir.path());
    let debug = dir.path().join("inlines.debug");
    split(&program, &debug);
    link(&program, &debug);
    let mut bytes = std::fs::read(&debug).unwrap();
    bytes.push(0);
    std::fs::write(&debug, bytes).unwrap();
    let found = plain().locate(&module(&program), &calls);
    assert!(found.iter().flatten().all(|location| location.line.is_none()));
}

#[test]
fn a_stripped_file_has_the_names_of_its_dynamic_symbols() {
    let dir = tempdir().unwrap();
    let program = compile(dir.path(), "inlines.c", &["-O2", "-rdynamic", "-s"]);
    let calls = calls(&program);
    let found = plain().locate(&module(&program), &calls);
    let in_outer =
        |locations: &Vec<Location>| *locations == [Location { function: Some("outer".to_string()), line: None }];
    // malloc is called once by a tail call, which is a jump, and once by a call.
    assert_eq!(found.iter().filter(|locations| in_outer(locations)).count(), 1, "{found:?}");
    // The rare call is in a part of main that the compiler has put elsewhere.
    let main = found.iter().flatten().filter(|location| location.function.as_deref() == Some("main"));
    assert_eq!(main.count(), 2, "{found:?}");
}

#[test]
fn a_file_that_changed_is_said_once_and_not_believed() {
    let dir = tempdir().unwrap();
    let (program, _, calls) = program_and_whole(dir.path());
    let before = module(&program);
    compile(dir.path(), "inlines.c", &["-g", "-O1", "-Wl,--build-id"]);
    let mut symbolizer = plain();
    for _ in 0..2 {
        assert!(symbolizer.locate(&before, &calls).iter().all(Vec::is_empty));
    }
    let warnings = symbolizer.take_warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("has changed since it was mapped"), "{warnings:?}");
    std::fs::remove_file(&program).unwrap();
    let mut symbolizer = plain();
    assert!(symbolizer.locate(&before, &calls).iter().all(Vec::is_empty));
    assert!(symbolizer.take_warnings()[0].contains("the file is gone"));
}

#[test]
fn a_table_is_kept_by_build_id_and_made_anew_when_it_is_damaged() {
    let dir = tempdir().unwrap();
    let (program, whole, calls) = program_and_whole(dir.path());
    let cache = dir.path().join("cache");
    let symbolizer = || Symbolizer::new(Vec::new(), Some(cache.clone()));
    let (of_program, expected) = (module(&program), plain().locate(&module(&whole), &calls));
    assert_eq!(symbolizer().locate(&of_program, &calls), expected);
    let entries: Vec<PathBuf> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");

    // From here on the program is another file, so only the cache has the answer.
    std::fs::write(&program, b"something else").unwrap();
    assert_eq!(symbolizer().locate(&of_program, &calls), expected);

    std::fs::copy(&whole, &program).unwrap();
    let entry = std::fs::read(&entries[0]).unwrap();
    let mut damaged = entry.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for bad in [&damaged[..], &entry[..entry.len() / 2], b""] {
        std::fs::write(&entries[0], bad).unwrap();
        assert_eq!(symbolizer().locate(&of_program, &calls), expected);
        assert_eq!(std::fs::read(&entries[0]).unwrap(), entry, "the entry is whole again");
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_no_failure() {
    let dir = tempdir().unwrap();
    let (program, whole, calls) = program_and_whole(dir.path());
    let mut symbolizer = Symbolizer::new(Vec::new(), Some("/proc/no/such/place".into()));
    assert_eq!(compare(&mut symbolizer, &program, &whole, &calls), 3);
}

#[test]
fn a_debug_file_that_is_installed_later_is_found_in_spite_of_the_cache() {
    let dir = tempdir().unwrap();
    let (program, whole, calls) = program_and_whole(dir.path());
    let debug = dir.path().join("inlines.debug");
    split(&program, &debug);
    link(&program, &debug);
    let hidden = dir.path().join("hidden");
    std::fs::rename(&debug, &hidden).unwrap();
    let cache = dir.path().join("cache");
    let mut symbolizer = Symbolizer::new(Vec::new(), Some(cache));
    assert!(symbolizer.locate(&module(&program), &calls).iter().flatten().all(|location| location.line.is_none()));
    std::fs::rename(&hidden, &debug).unwrap();
    assert_eq!(compare(&mut symbolizer, &program, &whole, &calls), 3);
}

#[test]
fn a_damaged_file_costs_names_at_most() {
    let dir = tempdir().unwrap();
    let (program, whole, calls) = program_and_whole(dir.path());
    let (bytes, of_program) = (std::fs::read(&whole).unwrap(), module(&program));
    let damage = (any::<prop::sample::Index>(), any::<u8>());
    // The section tables and the debug information are in the second half of the file.
    let damages = prop::collection::vec(damage, 1..12);
    let mut runner = TestRunner::deterministic();
    let mut unnamed = 0;
    for _ in 0..400 {
        let mut damaged = bytes.clone();
        for (at, byte) in damages.new_tree(&mut runner).unwrap().current() {
            let half = bytes.len() / 2;
            damaged[half + at.index(half)] = byte;
        }
        std::fs::write(&program, damaged).unwrap();
        let found = plain().locate(&of_program, &calls);
        assert_eq!(found.len(), calls.len());
        unnamed += usize::from(found.iter().all(Vec::is_empty));
    }
    assert!(unnamed > 0, "the damage is too small to mean something");
    for len in (0..bytes.len()).step_by(997) {
        std::fs::write(&program, &bytes[..len]).unwrap();
        assert_eq!(plain().locate(&of_program, &calls).len(), calls.len());
    }
}
