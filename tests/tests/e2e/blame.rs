//! `--blame own` groups a block under a line of the program, also where libraries allocate for the
//! program.

use crate::support::report::Report;
use crate::support::{Trace, victim};
use std::path::Path;

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
