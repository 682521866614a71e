//! Compares statistics, cumulation, diffs, filters, globs and sizes with CPython's own: from equal
//! traces, both must make equal rows in equal order.

use heapline_shared_format::event::python_frame;
use heapline_shared_format::text::format_size;
use heapline_tools::frames::{Frame, Left, Part, Tracebacks};
use heapline_tools::glob::Glob;
use heapline_tools::query::diff::{Change, Nothing, compare_to};
use heapline_tools::query::filter::{Filters, Matcher, Pattern};
use heapline_tools::query::statistics::{By, Key, Statistic, Trace, group, sorted};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

const CASES: usize = 600;

/// Files and lines of a stack, the most recent frame first, as in tracemalloc.
type Stack = Vec<(String, u32)>;

/// Groups of blocks: size, count and stack of each.
type Blocks = Vec<(u64, u64, Stack)>;

#[derive(Debug, Serialize)]
struct Case {
    by: &'static str,
    cumulative: bool,
    all_frames: bool,
    /// For each filter: whether it includes, the glob and the line.
    filters: Vec<(bool, String, Option<u32>)>,
    new: Blocks,
    old: Option<Blocks>,
}

/// Returns the answers of tests/oracle.py; none without python3. Under CI a missing python3 is an
/// error.
fn ask(questions: &Value) -> Option<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle.py");
    let child = Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if std::env::var_os("CI").is_none() => {
            println!("skipped: no python3 to compare with ({error})");
            return None;
        }
        Err(error) => panic!("python3: {error}"),
    };
    let (mut stdin, questions) = (child.stdin.take().unwrap(), questions.to_string());
    let writer = std::thread::spawn(move || stdin.write_all(questions.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "oracle.py failed");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn generate<S: Strategy>(strategy: S, count: usize) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

fn stack() -> impl Strategy<Value = Stack> {
    let file = prop::sample::select(vec!["a.py", "a.pyc", "b.py", "/src/b.c", "/src/B.c", "\u{e9}.py", "<unknown>"]);
    vec((file.prop_map(str::to_string), 0..4_u32), 1..6)
}

/// Blocks of few sizes with short stacks, so groups, ties and recursion are frequent.
fn blocks() -> impl Strategy<Value = Blocks> {
    let size = prop_oneof![Just(0), Just(8), Just(16), 1..5000_u64];
    vec((size, 1..4_u64, stack()), 0..25)
}

fn filter() -> impl Strategy<Value = (bool, String, Option<u32>)> {
    let globs = vec!["a.py", "*.py", "*.pyc", "/src/*", "/src/[a-z].c", "*[!y]", "?.py", "nothing", "*"];
    let line = prop::option::of(0..4_u32);
    (any::<bool>(), prop::sample::select(globs).prop_map(str::to_string), line)
}

prop_compose! {
    fn case()(
        (by, cumulative) in prop::sample::select(vec![
            ("lineno", false), ("lineno", true), ("filename", false), ("filename", true), ("traceback", false),
        ]),
        all_frames in any::<bool>(),
        filters in vec(filter(), 0..4),
        new in blocks(),
        old in prop::option::of(blocks()),
    ) -> Case {
        Case { by, cumulative, all_frames, filters, new, old }
    }
}

fn traces(blocks: &Blocks, tracebacks: &mut Tracebacks) -> Vec<Trace> {
    let trace = |(size, count, stack): &(u64, u64, Stack)| {
        let mut traceback = None;
        for (index, (filename, lineno)) in stack.iter().enumerate().rev() {
            let (filename, nothing) = (tracebacks.string(filename), tracebacks.string(""));
            // tracemalloc knows no functions, so functions must make no difference.
            let function = tracebacks.string(["f", "g", "h"][(index + stack.len()) % 3]);
            let (lineno, address, part, left) = (*lineno, python_frame(1, 0), Part::Asks, Left::Tables);
            let frame = Frame { filename, lineno, function, module: nothing, address, part, left };
            traceback = Some(tracebacks.push(traceback, frame));
        }
        let traceback = traceback.expect("every stack has a frame");
        Trace {
            traceback,
            blamed: traceback,
            size: size * count,
            count: *count,
            estimate: Default::default(),
            total_nframe: 0,
            truncated: false,
            block: None,
            threads: None,
            stack: None,
        }
    };
    blocks.iter().map(trace).collect()
}

fn filters(case: &Case) -> Filters {
    let patterns = |wanted: bool| -> Vec<Pattern> {
        let text = |glob: &String, line: Option<u32>| line.map_or(glob.clone(), |line| format!("{glob}:{line}"));
        let chosen = case.filters.iter().filter(|(include, ..)| *include == wanted);
        chosen.map(|(_, glob, line)| text(glob, *line).parse().unwrap()).collect()
    };
    Filters { include: patterns(true), exclude: patterns(false), all_frames: case.all_frames }
}

/// Returns Heapline's rows of a case, in the form of tests/oracle.py.
fn rows(case: &Case) -> Value {
    let by = match case.by {
        "lineno" => By::Lineno,
        "filename" => By::Filename,
        _ => By::Traceback,
    };
    let mut tracebacks = Tracebacks::default();
    let filters = filters(case);
    let mut grouped = |blocks: &Blocks| {
        let all = traces(blocks, &mut tracebacks);
        let mut matcher = Matcher::new(&filters);
        let kept: Vec<Trace> = all.into_iter().filter(|trace| matcher.keeps(&tracebacks, trace)).collect();
        group(&tracebacks, kept, by, case.cumulative)
    };
    let (new, old) = (grouped(&case.new), case.old.as_ref().map(&mut grouped));
    let rows: Vec<(Statistic, Option<Change>)> = match old {
        None => sorted(&tracebacks, new).into_iter().map(|stat| (stat, None)).collect(),
        Some(old) => compare_to(&tracebacks, new, old, &Nothing::default())
            .into_iter()
            .map(|(stat, change)| (stat, Some(change)))
            .collect(),
    };
    let row = |(stat, change): (Statistic, Option<Change>)| {
        let frames = match stat.key {
            Key::Text(file) => json!([[tracebacks.text(file), 0]]),
            Key::Line(file, line) => json!([[tracebacks.text(file), line]]),
            Key::Traceback(id) => {
                let frames = tracebacks.oldest_first(id);
                frames.iter().map(|frame| json!([tracebacks.text(frame.filename), frame.lineno])).collect()
            }
            Key::Symbol(..) | Key::Size(_) | Key::Age(_) => unreachable!("no case has native code or groups by size"),
        };
        let diffs = change.map(|change| (i64::try_from(change.size).unwrap(), i64::try_from(change.count).unwrap()));
        json!([frames, stat.size, stat.count, diffs.map(|d| d.0), diffs.map(|d| d.1)])
    };
    rows.into_iter().map(row).collect()
}

#[test]
fn statistics_diffs_and_filters_are_tracemallocs() {
    let cases = generate(case(), CASES);
    let Some(answers) = ask(&json!({"statistics": cases, "globs": [], "sizes": []})) else { return };
    let mut compared = 0;
    for (index, case) in cases.iter().enumerate() {
        let rows = rows(case);
        compared += rows.as_array().unwrap().len();
        assert_eq!(rows, answers["statistics"][index], "{case:#?}");
    }
    assert!(compared > 5 * CASES, "only {compared} rows: the cases are too small to mean something");
}

#[test]
fn globs_are_fnmatchs() {
    let pattern = "[ab.*?!\\[\\]\\-^&~\\\\c]{0,9}";
    let text = "[abc.\\[\\]\\-!^\\\\]{0,5}";
    let globs = generate((pattern, text), 20_000);
    let Some(answers) = ask(&json!({"statistics": [], "globs": globs, "sizes": []})) else { return };
    let mut matches = 0;
    for (index, (pattern, text)) in globs.iter().enumerate() {
        let found = Glob::new(pattern).matches(text);
        matches += usize::from(found);
        assert_eq!(Value::from(found), answers["globs"][index], "{pattern:?} on {text:?}");
    }
    assert!(matches > 200, "only {matches} matches: the patterns are too strange to mean something");
}

#[test]
fn sizes_are_written_as_by_tracemalloc() {
    let exponent = (0..62_u32, any::<u64>()).prop_map(|(shift, n)| i64::try_from(n >> 1 >> shift).unwrap());
    let sizes = generate((exponent, any::<bool>(), any::<bool>()), 5000);
    let sizes: Vec<(i64, bool)> =
        sizes.into_iter().map(|(n, minus, sign)| (if minus { -n } else { n }, sign)).collect();
    let Some(answers) = ask(&json!({"statistics": [], "globs": [], "sizes": sizes})) else { return };
    for (index, (size, sign)) in sizes.iter().enumerate() {
        assert_eq!(Value::from(format_size((*size).into(), *sign)), answers["sizes"][index], "{size}");
    }
}
