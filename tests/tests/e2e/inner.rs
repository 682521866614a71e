//! A jemalloc with prefixed names, linked into a library or the program, whose functions are called
//! directly.

use crate::support::stepped::{Stepped, detach};
use crate::support::trace::{live_sizes, report_on};
use crate::support::{Outcome, Trace, rounds, skip, victim};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Functions of jemalloc with a prefix in the victims.
const FUNCTIONS: [&str; 21] = [
    "malloc",
    "calloc",
    "realloc",
    "free",
    "aligned_alloc",
    "memalign",
    "posix_memalign",
    "valloc",
    "malloc_usable_size",
    "mallocx",
    "rallocx",
    "xallocx",
    "sallocx",
    "dallocx",
    "sdallocx",
    "nallocx",
    "mallctl",
    "mallctlbymib",
    "mallctlnametomib",
    "malloc_stats_print",
    "malloc_conf",
];

/// Room for the variables of Debian's jemalloc in a thread's static block. Libraries loaded late
/// get little of this block.
const ROOM: (&str, &str) = ("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=16384");

/// Builds jemalloc with the prefix `own_` and without C++ operators. Returns `None` if no jemalloc
/// is installed.
fn jemalloc(folder: &Path) -> Option<PathBuf> {
    let installed = Path::new("/usr/lib/x86_64-linux-gnu/libjemalloc_pic.a");
    if !installed.exists() {
        skip("libjemalloc_pic.a is not installed");
        return None;
    }
    let own = folder.join("own.a");
    std::fs::copy(installed, &own).expect("copied");
    let run = |command: &mut Command| assert!(command.status().expect("binutils").success(), "{command:?}");
    run(Command::new("ar").arg("d").arg(&own).arg("jemalloc_cpp.pic.o"));
    let renamed = FUNCTIONS.iter().flat_map(|name| ["--redefine-sym".to_owned(), format!("{name}=own_{name}")]);
    run(Command::new("objcopy").args(renamed).arg(&own));
    Some(own)
}

/// The victim, the library opened by the victim, and a program with the same jemalloc linked in.
struct Victims {
    opens: PathBuf,
    library: PathBuf,
    /// The library with the jemalloc's functions for other objects.
    exports: PathBuf,
    whole: PathBuf,
    _folder: tempfile::TempDir,
}

fn victims(flags: &[&str]) -> Option<Victims> {
    let folder = tempfile::tempdir().expect("a folder");
    let own = jemalloc(folder.path())?;
    let own = own.to_str().expect("UTF-8");
    let exporting = [&["-O0", own, "-lm"], flags].concat();
    let linked = [&exporting[..], &["-Wl,--exclude-libs,ALL"]].concat();
    let shared = ["-shared", "-fPIC", "-DLIBRARY"];
    let built = |flags: &[&str], name: &str| {
        // The archive's path differs each time, so the victims are compiled anew.
        let place = folder.path().join(name);
        std::fs::copy(victim::build("inner.c", flags), &place).expect("copied");
        place
    };
    Some(Victims {
        opens: victim::build("inner.c", &["-O0"]),
        library: built(&[&linked[..], &shared].concat(), "inner.so"),
        exports: built(&[&exporting[..], &shared].concat(), "exports.so"),
        whole: built(&[&linked[..], &["-DPROGRAM"]].concat(), "inner"),
        _folder: folder,
    })
}

impl Victims {
    fn opens(&self, way: &str) -> Trace {
        Trace::of(&self.opens).arg(&self.library).arg(way).env(ROOM.0, ROOM.1)
    }
}

fn in_victim<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--filter", "*/inner.c"], more].concat()
}

#[track_caller]
fn assert_counts(outcome: &Outcome, what: &str) {
    let said = outcome.printed();
    let live = outcome.report(&in_victim(&[]));
    assert_eq!(live.snapshot.contradictions, 0, "{what}");
    assert_eq!(live.snapshot.untracked_frees, 0, "{what}");
    assert_eq!((live.total.count, live.total.size), (said["live_blocks"], said["live_bytes"]), "{what}: live");
    let ever = outcome.report(&in_victim(&["--at", "total"]));
    assert_eq!((ever.total.count, ever.total.size), (said["allocs"], said["bytes"]), "{what}: ever");
    let line = victim::line_of("inner.c", "/* kept */");
    assert_eq!(live.at_line("inner.c", line).0 / 333, live.at_line("inner.c", line).1, "{what}: the caller's line");
}

#[test]
fn a_librarys_own_jemalloc_is_counted_like_malloc() {
    let Some(victims) = victims(&[]) else { return };
    for way in ["open", "reopen"] {
        let outcome = victims.opens(way).run().expect_code(0);
        assert_counts(&outcome, way);
        outcome.report(&[]).assert_exact();
    }
}

/// Of threads that open the library at once, one puts the listener in place: no block is recorded
/// twice, and a block from before is told.
#[test]
fn threads_that_open_a_library_at_once_record_each_block_once() {
    let Some(victims) = victims(&[]) else { return };
    for round in 0..rounds("HEAPLINE_RACES", 20) {
        let outcome = victims.opens("race").run().expect_code(0);
        let (said, ever) = (outcome.printed(), outcome.report(&in_victim(&["--at", "total"])));
        assert_eq!(ever.snapshot.contradictions, 0, "round {round}");
        assert!(ever.total.count <= said["allocs"], "round {round}: {} of {said:?}", ever.total.count);
        if ever.snapshot.unseen.is_empty() {
            assert_eq!((ever.total.count, ever.total.size), (said["allocs"], said["bytes"]), "round {round}");
        }
    }
}

/// The collector makes no system call that the C library does not make.
#[test]
fn a_library_is_opened_in_a_sandbox() {
    let Some(victims) = victims(&[]) else { return };
    let outcome = victims.opens("sandbox").run().expect_code(0);
    assert_counts(&outcome, "with calls that the collector does not know of");
}

#[test]
fn a_programs_own_jemalloc_is_counted_like_malloc() {
    let Some(victims) = victims(&[]) else { return };
    let outcome = Trace::of(&victims.whole).run().expect_code(0);
    assert_counts(&outcome, "the program's");
    // Here the jemalloc is in a library that the program is linked with.
    let path = victims.library.to_str().expect("UTF-8");
    let program = victim::build("inner.c", &["-O0", "-DNEEDED", "-Wl,--no-as-needed", path]);
    assert_counts(&Trace::of(program).run().expect_code(0), "a needed library's");
}

/// The stripped library keeps only exported symbols, without jemalloc's control function. Reports
/// name the unseen jemalloc.
#[test]
fn a_stripped_library_is_named_unless_it_exports_the_control_function() {
    let Some(victims) = victims(&[]) else { return };
    let run = |library: &Path| {
        let stripped = victim::stripped(library);
        Trace::of(&victims.opens).arg(stripped).env(ROOM.0, ROOM.1).run().expect_code(0)
    };
    let unseen = run(&victims.library).snapshot().meta.unseen;
    assert_eq!(unseen.iter().map(|cause| cause.name.as_str()).collect::<Vec<_>>(), ["jemalloc"]);

    let exported = run(&victims.exports);
    assert!(exported.snapshot().meta.unseen.is_empty());
    let (said, ever) = (exported.printed(), exported.report(&["--at", "total"]));
    assert!(ever.total.count >= said["allocs"] && ever.total.size >= said["bytes"], "{said:?}");
}

#[test]
fn what_a_constructor_has_allocated_before_is_told() {
    let Some(victims) = victims(&["-DEARLY"]) else { return };
    let outcome = victims.opens("open").run().expect_code(0);
    assert_counts(&outcome, "early");
    let unseen = outcome.snapshot().meta.unseen;
    assert_eq!(unseen.iter().map(|cause| cause.kind.as_str()).collect::<Vec<_>>(), ["constructors"]);
}

#[test]
fn samples_and_children_of_a_librarys_jemalloc_are_recorded() {
    let Some(victims) = victims(&[]) else { return };
    // With an interval of 1 byte each block is a sample.
    let sampled = victims.opens("open").option("--sample").option("1").run().expect_code(0);
    let said = sampled.printed();
    let live = |outcome: &Outcome| live_sizes(&outcome.snapshot()).values().sum::<u64>();
    assert_eq!(live(&sampled), live(&victims.opens("open").run().expect_code(0)));

    let forked = victims.opens("fork").run().expect_code(0);
    assert_counts(&forked, "the parent");
    let folder = forked.snapshot_path().with_extension("").with_extension("");
    let child = std::fs::read_dir(folder).expect("children").next().expect("one").expect("readable").path();
    let child = report_on(&child, &in_victim(&["--at", "total"]));
    assert_eq!((child.snapshot.mode.as_str(), child.snapshot.contradictions), ("exact", 0));
    let once = said["allocs"] / 5;
    assert_eq!(child.total.count, 4 * once, "its four threads");
}

/// Blocks of a jemalloc loaded before the attach are not known. The program goes on as before.
#[test]
fn an_attach_listens_to_what_is_loaded_later_only() {
    let Some(victims) = victims(&[]) else { return };
    let mut command = Command::new(&victims.opens);
    let mut victim = Stepped::start(command.arg(&victims.library).arg("steps").env(ROOM.0, ROOM.1));
    let path = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&path, &[]);
    victim.steps("oww");
    let said = detach(aggregator);
    assert!(!said.contains("NOT SEEN"), "{said}");
    let twice = report_on(&path, &in_victim(&["--at", "total"]));
    twice.assert_exact();
    // The listener is removed by the first call after the detach.
    victim.steps("ww");

    let aggregator = victim.attach(&path, &[]);
    victim.steps("ww");
    let said = detach(aggregator);
    assert!(said.contains("NOT SEEN: jemalloc (prefix own_)"), "{said}");
    let none = report_on(&path, &in_victim(&["--at", "total"]));
    assert_eq!(none.total.count, 0);
    assert_eq!(victim.finish(), 0);
    let once = victims.opens("open").run().expect_code(0).printed();
    assert_eq!((5 * twice.total.count, 5 * twice.total.size), (2 * once["allocs"], 2 * once["bytes"]));
}
