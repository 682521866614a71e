//! Programs started through glibc's loader, programs of an older C library, and static launchers.

use crate::support::trace::{live_sizes, read_snapshot, report_on};
use crate::support::victim::{self, line_of};
use crate::support::{Outcome, Trace, programs, stdout_of};
use std::path::{Path, PathBuf};
use std::process::Command;

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Search path of the machine's libraries, for a loader with `--library-path`.
const LIBRARIES: &str = "/nowhere:/lib/x86_64-linux-gnu:/lib64";

fn lines() -> PathBuf {
    victim::build("lines.c", &["-O0"])
}

/// Checks that the snapshot has the allocation of `lines.c` with file and line.
fn assert_names_lines(snapshot: &Path) {
    let report = report_on(snapshot, &[]);
    report.assert_exact();
    assert_eq!(report.at_line("lines.c", line_of("lines.c", "// LINE plain")), (1001, 1));
}

/// Snapshots of the children with this program name.
fn children(outcome: &Outcome, name: &str) -> Vec<PathBuf> {
    let folder = outcome.directory().join("out");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| Path::new(&read_snapshot(path).meta.executable).ends_with(name)).collect()
}

#[test]
fn a_program_that_the_loader_is_given_is_traced_by_its_own_name() {
    let program = lines();
    for options in [&[][..], &["--library-path", LIBRARIES], &["--inhibit-cache", "--argv0", "another"]] {
        let outcome = Trace::of(LOADER).args(options).arg(&program).run().expect_code(0);
        assert_names_lines(&outcome.snapshot_path());
        assert_eq!(Path::new(&outcome.snapshot().meta.executable), program.canonicalize().expect("it is there"));
    }
}

#[test]
fn a_script_and_a_child_that_go_through_the_loader_are_followed() {
    let program = lines();
    let command = format!("{LOADER} --library-path {LIBRARIES} {}", program.display());
    let outcome = Trace::of("/bin/sh").args(["-c", &format!("exec {command}")]).run().expect_code(0);
    assert_names_lines(&outcome.snapshot_path());
    let outcome = Trace::of("/bin/sh").args(["-c", &format!("{command}; true")]).run().expect_code(0);
    let [child] = &children(&outcome, "lines")[..] else { panic!("one child: {}", outcome.stderr()) };
    assert_names_lines(child);
}

/// In a bundle the loader has another name and lies in another folder.
#[test]
fn a_loader_is_known_by_its_own_name() {
    let trace = Trace::of("/bin/sh");
    let (loader, source) = (trace.directory().join("start"), victim::source("lines.c"));
    std::fs::copy(LOADER, &loader).expect("a copy");
    let program = trace.directory().join("lines");
    let mut compiler = Command::new("gcc");
    compiler.args(["-g", "-O0", "-fno-builtin", "-pthread", "-o"]).arg(&program).arg(source);
    stdout_of(compiler.arg(format!("-Wl,--dynamic-linker={}", loader.display())));
    let outcome = trace.args(["-c", &format!("{}; exec {0}", program.display())]).run().expect_code(0);
    assert_names_lines(&outcome.snapshot_path());
    assert_eq!(children(&outcome, "lines").len(), 1);
}

#[test]
fn what_the_loader_is_only_asked_shows_nothing_of_ours() {
    let program = lines();
    let program = program.to_str().expect("UTF-8");
    // Addresses differ from run to run.
    let names = |text: &[u8]| {
        let text = String::from_utf8_lossy(text).into_owned();
        text.lines().map(|line| line.split(" (0x").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let listed = |trace: Trace| {
        let alone = names(&trace.untraced().stdout);
        let outcome = trace.run().expect_code(0);
        assert_eq!(names(&outcome.output.stdout), alone);
        outcome.stderr()
    };
    for option in ["--list", "--verify"] {
        let said = listed(Trace::of(LOADER).args([option, program]));
        assert!(said.contains("NOTHING WAS RECORDED") && said.contains("only asked"), "{said}");
    }
    listed(Trace::of("env").args(["LD_TRACE_LOADED_OBJECTS=1", program]));
    listed(Trace::of("ldd").arg(program));
}

/// The loader of an old glibc ends a program if a preloaded library needs a missing symbol or a
/// missing version.
#[test]
fn the_collector_asks_for_nothing_that_an_old_c_library_lacks() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let library = folder.path().join("collector.so");
    stdout_of(Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&library));
    let versions = stdout_of(Command::new("readelf").arg("-V").arg(&library));
    assert!(!versions.contains("GLIBC_"), "{versions}");
    let symbols = stdout_of(Command::new("readelf").args(["-W", "--dyn-syms"]).arg(&library));
    let undefined = symbols.lines().filter(|line| line.contains(" GLOBAL ") && line.contains(" UND "));
    let mut names: Vec<&str> = undefined.filter_map(|line| line.split_whitespace().next_back()).collect();
    names.sort_unstable();
    // Both glibc 2.17 and musl have all of these symbols.
    assert_eq!(names, ["__errno_location", "clock_gettime", "dl_iterate_phdr", "environ", "getauxval"]);
    // Both know this kind of hash table, and only newer loaders know packed relocations.
    let dynamic = stdout_of(Command::new("readelf").args(["-W", "-d"]).arg(&library));
    assert!(dynamic.contains("(GNU_HASH)") && !dynamic.contains("RELR"), "{dynamic}");
    let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.len() == 1 && needed[0].ends_with("[libc.so.6]"), "{needed:?}");
}

/// Simulates a glibc before 2.34: libc lacks `dlsym`, `_dl_find_object` and other late symbols. The
/// aggregator of the tree is gone.
#[test]
fn a_program_with_an_old_c_library_runs_and_knows_nothing_of_us() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let library = folder.path().join("collector.so");
    stdout_of(Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&library));
    let mut bytes = std::fs::read(&library).expect("written");
    for late in ["dlsym", "_dl_find_object", "__libc_single_threaded", "pthread_create", "pthread_sigmask"] {
        let name = [b"\0", late.as_bytes(), b"\0"].concat();
        let at = bytes.windows(name.len()).position(|part| part == name).expect("a weak symbol");
        bytes[at + 1] = b'X';
    }
    std::fs::write(&library, bytes).expect("written");
    let program = victim::build("musl.c", &["-O1"]);
    for eager in ["", "1"] {
        let mut command = Command::new(&program);
        command.env("LD_PRELOAD", &library).env("LD_BIND_NOW", eager).env("HEAPLINE_TREE", "1:2:3:4:5:6:7:8:9:0");
        assert_eq!(stdout_of(&mut command), MUSL_SAYS);
    }
}

/// The output of `musl.c`.
pub const MUSL_SAYS: &str = "break 1\nforked\nsystem\npopen\nexec\n";

#[test]
fn what_a_static_launcher_starts_is_traced() {
    let launcher = victim::build("launcher.c", &["-O1", "-static"]);
    let program = lines();
    let direct = Trace::of(&launcher).arg(&program).run().expect_code(0);
    assert!(direct.stderr().contains("statically linked"), "{}", direct.stderr());
    let command = format!("exec {} {}", launcher.display(), program.display());
    let after_exec = Trace::of("/bin/sh").args(["-c", &command]).run().expect_code(0);
    for outcome in [direct, after_exec] {
        let traced = children(&outcome, "lines");
        assert_eq!(traced.len(), 3, "two children, and the launcher's own process: {}", outcome.stderr());
        traced.iter().for_each(|snapshot| assert_names_lines(snapshot));
        assert!(outcome.stderr().contains("NOTHING WAS RECORDED"), "of the launcher itself: {}", outcome.stderr());
        assert!(live_sizes(&outcome.snapshot()).is_empty());
    }
}
