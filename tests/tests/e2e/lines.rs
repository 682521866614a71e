//! Files, lines and functions of allocations on known lines, with inlined helpers and internals of
//! the standard library.

use crate::support::trace::report_on;
use crate::support::victim::{self, line_of};
use crate::support::{Report, Trace};

const LEVELS: [&str; 2] = ["-O0", "-O2"];

/// (bytes, blocks) at the line of `source` with the marker `LINE name`.
fn at(report: &Report, source: &str, name: &str) -> (u64, u64) {
    report.at_line(source, line_of(source, &format!("// LINE {name}")))
}

#[test]
fn c_allocations_are_at_their_lines() {
    for level in LEVELS {
        let outcome = Trace::of(victim::build("lines.c", &[level])).run().expect_code(0);
        let report = outcome.report(&["--by", "lineno"]);
        report.assert_exact();
        let lines =
            ["plain", "inlined", "calloc", "realloc", "aligned_alloc", "loop"].map(|m| at(&report, "lines.c", m));
        let wanted = [(1001, 1), (1002 + 1003, 2), (700, 1), (1005, 1), (1024, 1), (40, 4)];
        assert_eq!(lines, wanted, "{level}");
        assert_eq!(report.total.groups, 6, "{level}: nothing else allocates");
    }
}

#[test]
fn inlined_functions_are_frames_of_their_own() {
    for level in LEVELS {
        let outcome = Trace::of(victim::build("lines.c", &[level])).run().expect_code(0);
        let report = outcome.report(&["--by", "traceback"]);
        let stat = report.stats.iter().find(|s| s.size == 1003).expect("the block of 1003 bytes");
        let top: Vec<_> = stat.traceback.iter().rev().take(3).map(|f| (f.function.as_deref(), f.lineno)).collect();
        let line = |marker: &str| line_of("lines.c", &format!("// LINE {marker}"));
        let wanted = [
            (Some("inlined"), line("inlined")),
            (Some("inlined_twice"), line("inlined_twice")),
            (Some("main"), line("calls_inlined_twice")),
        ];
        assert_eq!(top, wanted, "{level}");
    }
}

#[test]
fn cumulative_lines_hold_what_they_called() {
    let outcome = Trace::of(victim::build("lines.c", &["-O2"])).run().expect_code(0);
    let report = outcome.report(&["--by", "lineno", "--cumulative"]);
    let wanted =
        [("plain", (1001, 1)), ("calls_plain", (1001, 1)), ("inlined", (2005, 2)), ("calls_inlined", (1002, 1))];
    for (marker, sum) in wanted {
        assert_eq!(at(&report, "lines.c", marker), sum, "{marker}");
    }
    assert_eq!(report.total.size, 1001 + 1002 + 1003 + 700 + 1005 + 1024 + 40, "the total counts each block once");
}

#[test]
fn cxx_containers_are_charged_to_the_line_that_uses_them() {
    for level in LEVELS {
        let outcome = Trace::of(victim::build("lines.cpp", &[level])).run().expect_code(0);
        // Some functions of a container are above the skipped internals (vector::reserve), so the
        // report is cumulative.
        let report = outcome.report(&["--by", "lineno", "--cumulative"]);
        let sizes = |marker: &str| at(&report, "lines.cpp", marker);
        assert_eq!(sizes("new_vector"), (24, 1), "{level}");
        assert_eq!(sizes("vector"), (4000, 1), "{level}");
        assert_eq!(sizes("new_string"), (32, 1), "{level}");
        assert_eq!(sizes("string"), (3001, 1), "{level}");
        assert_eq!(sizes("new_map"), (48, 1), "{level}");
        assert_eq!(sizes("map"), (5 * 48, 5), "{level}");
        assert_eq!(sizes("new_shared"), (16, 1), "{level}");
        assert_eq!(sizes("make_shared"), (16 + 80, 1), "{level}");
        assert_eq!(sizes("array"), (777, 1), "{level}");
        assert_eq!(sizes("unique"), (3 * 80 + 8, 2), "{level}: the pointer's block and the array's");
    }
}

#[test]
fn no_row_blames_the_plumbing() {
    for level in LEVELS {
        let outcome = Trace::of(victim::build("lines.cpp", &[level])).run().expect_code(0);
        for row in &outcome.report(&["--by", "lineno"]).stats {
            let frame = row.most_recent();
            for plumbing in ["new_allocator.h", "allocator.h", "alloc_traits.h"] {
                assert!(frame.file() != plumbing, "{level}: {frame:?}");
            }
        }
        let raw = outcome.report(&["--by", "traceback", "--raw-frames"]);
        let vector = raw.stats.iter().find(|s| s.size == 4000).expect("the vector's block");
        let function = vector.most_recent().function.clone().unwrap_or_default();
        assert!(function.starts_with("operator new"), "{level}: --raw-frames shows the plumbing, not {function}");
    }
}

/// Keeps the symbols of other tests away. A stripped program has the build-id of the whole program,
/// and so the names, once these are known on the machine.
fn with_own_cache(trace: Trace) -> Trace {
    let folder = trace.directory().join("cache");
    trace.env("XDG_CACHE_HOME", folder.to_str().expect("UTF-8"))
}

#[test]
fn a_stripped_program_still_has_modules_and_offsets() {
    let program = victim::stripped(&victim::build("lines.c", &["-O2"]));
    let outcome = with_own_cache(Trace::of(&program)).run().expect_code(0);
    let report = outcome.report(&["--by", "traceback"]);
    report.assert_exact();
    assert_eq!(report.total.size, 1001 + 1002 + 1003 + 700 + 1005 + 1024 + 40);
    let module = program.canonicalize().expect("the victim");
    for row in report.stats.iter().filter(|s| s.size == 1001) {
        let frame = row.most_recent();
        assert_eq!((frame.filename.as_str(), frame.lineno), (module.to_str().expect("UTF-8"), 0));
    }
    let symbolized = Trace::of(victim::build("lines.c", &["-O2"])).run().expect_code(0).report(&["--by", "traceback"]);
    let depths = |r: &Report| {
        let mut depths: Vec<_> = r.stats.iter().map(|s| (s.size, s.count, s.total_nframe)).collect();
        depths.sort_unstable();
        depths
    };
    assert_eq!(depths(&report), depths(&symbolized), "unwinding needs no symbols");
}

/// The block is asked for in a part of `exported` that the compiler put before all functions. The
/// symbol table of the stripped program has the exported functions only.
#[test]
fn a_part_put_elsewhere_has_the_name_of_its_function() {
    for level in ["-O1", "-O2", "-O3"] {
        let flags = [level, "-rdynamic", "-freorder-blocks-and-partition"];
        let program = victim::stripped(&victim::build("cold.c", &flags));
        let report = with_own_cache(Trace::of(&program)).run().expect_code(0).report(&["--by", "traceback"]);
        report.assert_exact();
        let block = report.stats.iter().find(|stat| stat.size == 50_000).expect("the block");
        let names: Vec<_> = block.traceback.iter().rev().map(|frame| frame.function.as_deref()).collect();
        assert_eq!(names[1..3], [Some("exported"), Some("main")], "{level}: {names:?}");
    }
}

/// Both files have the same build-id. The result for the stripped file must not be used for the
/// other file.
#[test]
fn names_are_found_after_a_stripped_copy_was_reported_on() {
    let program = victim::build("lines.c", &["-O1"]);
    let stripped = with_own_cache(Trace::of(victim::stripped(&program))).run().expect_code(0);
    let of_stripped = stripped.report(&["--by", "function"]);
    assert!(of_stripped.stats.iter().all(|s| s.key != "plain"), "{:?}", of_stripped.stats);
    // The same folder means the same cache.
    let cache = stripped.directory().join("cache");
    let whole = Trace::of(&program).env("XDG_CACHE_HOME", cache.to_str().expect("UTF-8")).run().expect_code(0);
    let beside = stripped.snapshot_path().with_file_name("whole.snap.zst");
    std::fs::copy(whole.snapshot_path(), &beside).expect("a copy");
    let report = report_on(&beside, &["--by", "function"]);
    assert!(report.stats.iter().any(|s| s.key == "plain"), "{:?}", report.stats);
}

#[test]
fn a_deep_recursion_is_walked_to_its_root() {
    let trace = Trace::of(victim::build("deep.c", &["-O1"])).arg("10000").option("--nframe").option("100");
    let report = trace.run().expect_code(0).report(&["--by", "traceback"]);
    report.assert_exact();
    let of_size = |size: u64| report.stats.iter().find(|s| s.size == size).expect("the victim's block");
    let (deep, shallow) = (of_size(7001), of_size(7002));
    let root = shallow.total_nframe.expect("by traceback");
    assert!([3, 4].contains(&root), "{root}: main and the frames that start it, one fewer before glibc 2.34");
    assert_eq!(deep.total_nframe, Some(10_000 + root));
    assert_eq!(deep.traceback.len(), 100, "--nframe bounds what is kept");
    assert!(deep.traceback.iter().all(|f| f.function.as_deref() == Some("down")), "the most recent ones");
}
