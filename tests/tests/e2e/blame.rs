//! `--blame own` groups a block under a line of the program, also where libraries allocate for the
//! program.

use crate::support::report::Report;
use crate::support::{Outcome, Trace, programs, stdout_of, victim};
use std::path::Path;
use std::process::Command;

fn own(program: &Path, options: &[&str]) -> Report {
    Trace::of(program).run().expect_code(0).report(&[&["--blame", "own"], options].concat())
}

fn lines(source: &str, markers: &[&str]) -> Vec<u64> {
    markers.iter().map(|marker| victim::line_of(source, &format!("// LINE {marker}"))).collect()
}

#[test]
fn containers_strings_and_wrappers_of_cxx_are_their_callers() {
    for level in ["-O0", "-O2"] {
        let report = own(&victim::build("blame.cpp", &[level]), &[]);
        let size = |marker: &str| report.at_line("blame.cpp", lines("blame.cpp", &[marker])[0]).0;
        assert_eq!(size("vector"), 128_000, "{level}: twice as much again and again");
        assert!((100_000..110_000).contains(&size("map")), "{level}: {}", size("map"));
        assert!((100_000..120_000).contains(&size("hash")), "{level}: {}", size("hash"));
        assert!((1000..1100).contains(&size("shared")), "{level}: {}", size("shared"));
        assert_eq!((size("string"), size("strdup")), (300_001, 300_001), "{level}");
        assert_eq!((size("lambda"), size("wrapped")), (200_000, 150_000), "{level}");
        let of_others = report.stats.iter().filter(|row| row.most_recent().file() != "blame.cpp");
        let of_others: u64 = of_others.map(|row| row.size).sum();
        assert!(of_others < 100_000, "{level}: {of_others} bytes are blamed on others");
    }
}

#[test]
fn what_rusts_library_allocates_is_its_callers() {
    let report = own(&victim::build_rust("blame.rs", &[]), &[]);
    let size = |marker: &str| report.at_line("blame.rs", lines("blame.rs", &[marker])[0]).0;
    assert_eq!((size("push"), size("repeat"), size("boxed")), (131_072, 300_000, 200_000));
    assert!((100_000..300_000).contains(&size("insert")), "{}", size("insert"));
}

#[test]
fn the_blamed_frame_is_marked_and_the_traceback_stays_whole() {
    let outcome = Trace::of(victim::build("blame.cpp", &["-O0"])).run().expect_code(0);
    let [line] = lines("blame.cpp", &["wrapped"])[..] else { panic!("one line") };
    let filter = format!("*/blame.cpp:{line}");
    let options = ["--by", "traceback", "--filter", &filter];
    let report = outcome.report(&[&["--blame", "own"], &options[..]].concat());
    let [row] = &report.stats[..] else { panic!("one traceback: {:?}", report.stats) };
    assert_eq!(row.most_recent().function.as_deref(), Some("xmalloc"));
    let blamed = &row.traceback[row.blamed.expect("it is told")];
    assert_eq!((blamed.file(), blamed.lineno, blamed.function.as_deref()), ("blame.cpp", line, Some("main")));
    assert_eq!(outcome.report(&[&["--blame", "leaf"], &options[..]].concat()).stats.len(), 0, "xmalloc's line");

    let skipped = outcome.report(&["--blame", "own", "--skip", "add", "--filter", "*/blame.cpp"]);
    let [vector, map] = lines("blame.cpp", &["vector", "map"])[..] else { panic!("two lines") };
    assert_eq!(skipped.at_line("blame.cpp", vector).0 + skipped.at_line("blame.cpp", map).0, 0);
    let all = outcome.report(&["--blame", "own", "--filter", "*/blame.cpp"]);
    assert_eq!(skipped.total.size, all.total.size, "it is its caller's now");
}

/// Runs a victim that keeps its memory at the line of each kind, and compares the first row by line
/// with this line: live, and at the peak for the kinds in `peaks`.
fn assert_first_rows(source: &str, program: &Path, kinds: &[&str], peaks: &[&str]) {
    for (kind, at) in kinds.iter().map(|kind| (kind, "live")).chain(peaks.iter().map(|kind| (kind, "peak"))) {
        let outcome = Trace::of(program).arg(kind).run().expect_code(0);
        let report = outcome.report(&["--by", "lineno", "--at", at, "--blame", "own", "--no-config"]);
        let first = report.stats.first().unwrap_or_else(|| panic!("{source}, {kind}: no rows")).most_recent();
        let line = victim::line_of(source, &format!("// LINE {kind}"));
        assert_eq!((first.file(), first.lineno), (source, line), "{kind} at {at} of {}", program.display());
    }
}

#[test]
fn the_first_row_of_a_cxx_service_is_its_own_line() {
    let kinds = [
        "push_back",
        "emplace_back",
        "string",
        "map",
        "hash",
        "map of vectors",
        "set",
        "list",
        "deque",
        "shared_ptr",
        "unique_ptr",
        "function",
        "async",
        "any",
        "stream",
        "lambda",
        "thread",
        "copy",
        "queue",
        "variant",
    ];
    for level in ["-O0", "-O2"] {
        let program = victim::build("service.cpp", &["-std=c++17", level]);
        assert_first_rows("service.cpp", &program, &kinds, &["push_back", "shared_ptr"]);
    }
}

/// The buffer of a sort is the sorting line's, though the sorted vector is as large.
#[test]
fn the_buffer_of_a_sort_is_the_lines_that_sorts() {
    for level in ["-O0", "-O2"] {
        let outcome =
            Trace::of(victim::build("service.cpp", &["-std=c++17", level])).arg("stable_sort").run().expect_code(0);
        let report = outcome.report(&["--at", "peak", "--blame", "own"]);
        let [many, sort] = lines("service.cpp", &["many", "stable_sort"])[..] else { panic!("two lines") };
        assert_eq!(report.at_line("service.cpp", many), (400_000, 1), "{level}");
        let buffer = report.at_line("service.cpp", sort).0;
        assert!((200_000..=400_000).contains(&buffer), "{level}: {buffer}");
    }
}

#[test]
fn the_first_row_of_a_rust_service_is_its_own_line() {
    let kinds = [
        "push", "repeat", "format", "add", "extend", "map", "set", "entry", "tree", "queue", "box", "arc", "clone",
        "collect", "closure", "thread", "channel",
    ];
    for flags in [&["-Copt-level=0"][..], &["-Copt-level=2"]] {
        let program = victim::build_rust("service.rs", flags);
        assert_first_rows("service.rs", &program, &kinds, &["push", "peak"]);
    }
}

#[test]
fn the_first_row_of_a_program_with_wrappers_is_the_caller_of_the_wrapper() {
    let kinds = ["xmalloc", "zalloc", "nested", "realloc", "xstrdup", "strdup", "asprintf"];
    for level in ["-O0", "-O2"] {
        let program = victim::build("wrapped.c", &[level]);
        assert_first_rows("wrapped.c", &program, &kinds, &["xmalloc", "peak"]);
    }
}

/// A report with the settings in `text`.
fn with_settings(outcome: &Outcome, text: &str, options: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("heapline")).expect("a folder within it");
    std::fs::write(folder.path().join("heapline/report.toml"), text).expect("a file within it");
    let mut report = Command::new(&programs().report);
    report.arg(outcome.snapshot_path()).args(options).env("XDG_CONFIG_HOME", folder.path());
    let output = report.output().expect("report runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_users_settings_name_more_wrappers() {
    let outcome = Trace::of(victim::build("wrapped.c", &["-O0"])).arg("pool").run().expect_code(0);
    let options = ["--by", "function", "--limit", "1", "--format", "csv"];
    let (_, listed, _) = with_settings(&outcome, "skip = [\"pool_*\"]", &options);
    assert!(listed.ends_with("\n1500000,50,main\n"), "{listed}");
    let without = [&options[..], &["--no-config"]].concat();
    let (_, unlisted, _) = with_settings(&outcome, "skip = [\"pool_*\"]", &without);
    assert!(unlisted.ends_with("\n1500000,50,pool_take\n"), "{unlisted}");
    let typed = [&without[..], &["--skip", "pool_*"]].concat();
    assert_eq!(with_settings(&outcome, "", &typed).1, listed);

    let (status, out, error) = with_settings(&outcome, "skip = \"pool_*\"\n", &options);
    assert_eq!((status, out.as_str(), error.lines().count()), (Some(1), "", 1), "{error}");
    assert!(error.contains("report.toml, line 1: ") && error.contains("--no-config"), "{error}");
    assert_eq!(with_settings(&outcome, "skip = \"pool_*\"\n", &without).0, Some(0), "nobody reads the file");
}

#[test]
fn a_traceback_in_text_begins_with_the_most_recent_frame_and_has_no_start_code() {
    let outcome = Trace::of(victim::build("blame.cpp", &["-O0"])).run().expect_code(0);
    let text = |options: &[&str]| {
        let [line] = lines("blame.cpp", &["wrapped"])[..] else { panic!("one line") };
        let mut report = Command::new(&programs().report);
        report.arg(outcome.snapshot_path()).args(["--by", "traceback", "--filter", &format!("*/blame.cpp:{line}")]);
        let text = stdout_of(report.args(options));
        let frames = text.lines().filter(|line| line.contains("  File \"") || line.starts_with("> File \""));
        let frame = |line: &str| {
            let function = line.rsplit_once(", in ").expect("a function").1.split(" [").next().expect("a name");
            format!("{}{function}", &line[..1])
        };
        frames.map(frame).collect::<Vec<_>>()
    };
    assert_eq!(text(&[]), [" xmalloc", ">main"]);
    let raw = text(&["--raw-frames"]);
    assert_eq!(raw.last().map(String::as_str), Some(" _start"), "{raw:?}");
    assert_eq!(raw.iter().filter(|frame| frame.starts_with('>')).collect::<Vec<_>>(), [">main"]);
    let json = outcome.report(&["--by", "traceback"]);
    assert!(json.stats.iter().any(|row| row.traceback[0].function.as_deref() == Some("_start")), "JSON has all frames");
}

/// The program's own code is below `main`, below the function of a thread, and below Rust's start.
#[test]
fn trees_begin_with_the_programs_own_code() {
    let roots = |program: &Path, kind: &str| {
        let outcome = Trace::of(program).arg(kind).run().expect_code(0);
        let mut report = Command::new(&programs().report);
        report.arg(outcome.snapshot_path()).args(["--by", "tree", "--format", "json", "--limit", "1"]);
        let json: serde_json::Value = serde_json::from_str(&stdout_of(&mut report)).expect("JSON");
        json["stats"][0]["traceback"][0]["function"].as_str().expect("a function").to_string()
    };
    let cxx = victim::build("service.cpp", &["-std=c++17", "-O0"]);
    assert_eq!(roots(&cxx, "list"), "main");
    assert!(roots(&cxx, "thread").contains("operator()"), "{}", roots(&cxx, "thread"));
    let rust = victim::build_rust("service.rs", &["-Copt-level=0"]);
    assert_eq!(roots(&rust, "tree"), "service::main");
    assert_eq!(roots(&rust, "thread"), "service::main::{{closure}}");
}
