//! Stacks through code without unwind tables: code generated at run time, and objects without
//! tables. The walk goes on by frame pointers where these are plausible.

use crate::support::report::Stat;
use crate::support::victim::{self, line_of};
use crate::support::{Outcome, Report, Trace};

/// Runs a victim with every stack compared with a fresh walk. No stack may differ.
fn run(trace: Trace) -> Outcome {
    let outcome = trace.env("HEAPLINE_VERIFY", "1").run().expect_code(0);
    outcome.report(&[]).assert_exact();
    let notes = outcome.snapshot().meta.notes;
    let same = notes.iter().any(|note| note.contains("HEAPLINE_VERIFY") && note.contains(" 0 of them differed"));
    assert!(same, "{notes:?}");
    outcome
}

/// The only traceback of all blocks of a size ever made.
fn of_size(report: &Report, size: u64) -> &Stat {
    let found: Vec<&Stat> = report.stats.iter().filter(|stat| stat.size == size * stat.count).collect();
    let [stat] = found[..] else { panic!("{} tracebacks of blocks of {size} bytes", found.len()) };
    stat
}

/// Functions of a traceback with how each was found, the most recent first; `jit` for code without
/// a name.
fn walked(stat: &Stat) -> Vec<(&str, &str)> {
    let frames = stat.traceback.iter().rev();
    frames
        .map(|frame| {
            let (name, walked) = (frame.function.as_deref().unwrap_or(""), frame.walked.as_deref().unwrap_or(""));
            (if name.starts_with("0x") { "jit" } else { name }, walked)
        })
        .collect()
}

fn tracebacks(outcome: &Outcome) -> Report {
    outcome.report(&["--by", "traceback", "--at", "total"])
}

#[test]
fn generated_code_is_walked_by_its_frame_pointers() {
    for level in ["-O0", "-O2"] {
        let outcome = run(Trace::of(victim::build("jit.c", &[level])).arg("chain"));
        let report = tracebacks(&outcome);
        for (size, levels) in [(1001, 5), (1002, 3), (1003, 3), (1004, 5)] {
            let frames = walked(of_size(&report, size));
            let mut wanted = vec![("grab", "cfi")];
            wanted.extend(vec![("jit", "jit"); levels]);
            wanted.push(("calls_code", "fp"));
            assert_eq!(frames[..levels + 2], wanted, "{level}: {size}: {frames:?}");
            assert!(frames.contains(&("main", "cfi")), "{level}: {size}: {frames:?}");
            assert_eq!(frames.last(), Some(&("_start", "cfi")), "{level}: {size}: {frames:?}");
            let stack = outcome.snapshot();
            assert!(stack.stacks.iter().filter(|stack| stack.leaf.is_some()).all(|stack| !stack.truncated), "{level}");
        }
        assert_eq!(of_size(&report, 1003).count, 1000, "{level}");
    }
}

/// Each kind of rbp that is no frame pointer ends the traceback, which is marked so. Nothing
/// crashes, and nothing goes round.
#[test]
fn what_is_no_frame_pointer_ends_the_traceback() {
    for level in ["-O0", "-O2"] {
        let outcome = run(Trace::of(victim::build("jit.c", &[level])).arg("garbage"));
        let report = tracebacks(&outcome);
        let by_code = |stat: &&Stat| walked(stat).starts_with(&[("grab", "cfi"), ("jit", "jit")]);
        let mut found: Vec<_> =
            report.stats.iter().filter(by_code).map(|stat| (stat.traceback.len(), stat.count)).collect();
        found.sort_unstable();
        // Two kinds lead to the function itself once more.
        let kinds = outcome.printed()["kinds"];
        assert_eq!(found, [(2, 50 * (kinds - 2)), (3, 50 * 2)], "{level}");
        let snapshot = outcome.snapshot();
        let of_depth = |depth| snapshot.stacks.iter().filter(move |stack| stack.total_nframe == depth);
        assert!(of_depth(2).chain(of_depth(3)).all(|stack| stack.truncated), "{level}");
    }
}

fn library(flags: &[&str]) -> Outcome {
    let base = ["-DLIBRARY", "-shared", "-fPIC", "-fno-asynchronous-unwind-tables", "-fno-optimize-sibling-calls"];
    let library = victim::build("untabled.c", &[base.as_slice(), flags].concat());
    run(Trace::of(victim::build("untabled.c", &["-O1"])).arg(library))
}

#[test]
fn an_object_without_unwind_tables_is_walked_by_its_frame_pointers() {
    for level in ["-O0", "-O1"] {
        let report = tracebacks(&library(&[level, "-fno-omit-frame-pointer"]));
        for (size, root) in [(3001, "_start"), (3002, "clone3"), (3003, "_start")] {
            let frames = walked(of_size(&report, size));
            // The most recent frame is found by the entry of the hook.
            let mut wanted = vec![("leaf", "cfi")];
            wanted.extend([("middle", "fp"); 4]);
            wanted.push(("enter", "fp"));
            assert_eq!(frames[..6], wanted, "{level}: {size}: {frames:?}");
            let caller = if size == 3003 { "call_without_frame_pointer" } else { "calls_library" };
            assert_eq!(frames[6], (caller, "fp"), "{level}: {size}: {frames:?}");
            assert_eq!(frames[7].1, "cfi", "{level}: {size}: {frames:?}");
            assert!(frames.iter().any(|frame| frame.0.contains(root)), "{level}: {size}: {frames:?}");
        }
        let (file, line) = ("untabled.c", line_of("untabled.c", "// LINE leaf"));
        let stat = of_size(&report, 3001);
        assert_eq!((stat.most_recent().file(), stat.most_recent().lineno), (file, line));
    }
}

#[test]
fn an_object_without_tables_and_frame_pointers_ends_the_traceback() {
    let outcome = library(&["-O1", "-fomit-frame-pointer"]);
    let report = tracebacks(&outcome);
    let own: Vec<&Stat> = report.stats.iter().filter(|stat| walked(stat) == [("leaf", "cfi")]).collect();
    assert_eq!(own.iter().map(|stat| stat.count).sum::<u64>(), 102);
    let snapshot = outcome.snapshot();
    assert!(snapshot.stacks.iter().filter(|stack| stack.total_nframe == 1).all(|stack| stack.truncated));
}
