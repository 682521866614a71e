//! Tests of a report without a choice: an overview of what matters most, on a screen of 80 x 24.

mod support;

use heapline_shared_format::snapshot::history::{Change, Changes, DomainStep, Mark, Step};
use heapline_shared_format::snapshot::{Begun, Domain, End, History, Sampled, Snapshot, Unseen};
use heapline_tools::input::tree::Subject;
use heapline_tools::query::overview::Overview;
use heapline_tools::query::report::Request;
use heapline_tools::render::text::{Layout, overview};
use heapline_tools::symbols::Symbolizer;
use proptest::prelude::*;
use std::path::Path;
use std::process::Command;
use support::scene::{report, scene, stderr, stdout};
use support::snapshot::Builder;
use tempfile::tempdir;
use unicode_width::UnicodeWidthStr;

/// 2026-11-28T02:00:00Z, an hour later at the place of the recording.
const BEGUN: u64 = 1_795_831_200_000;
const MINUTE: u64 = 60_000;

fn step(end: u64, domain: Domain, current: u64, greatest: u64, changes: &[(Option<u32>, i64)]) -> Step {
    let row = DomainStep { domain, current, blocks: 1, greatest, allocs: 1, frees: 0, allocated_bytes: 1 };
    let change = |&(stack, size)| Change { domain, stack, size, count: size.signum(), allocated_bytes: 0, allocs: 0 };
    let changes: Vec<Change> = changes.iter().map(change).collect();
    Step { end, domains: vec![row], process: None, changes: Changes::encode(&changes) }
}

fn shown(snapshot: Snapshot, path: &str, width: Option<usize>) -> String {
    let subject = Subject::process(snapshot);
    let plan = Overview::of(&subject);
    let parts = plan.parts(&Request::default(), &subject, &mut Symbolizer::new(Vec::new(), None)).expect("no threads");
    let mut out = Vec::new();
    let layout = Layout { width, has_colours: false, is_verbose: false };
    overview(&parts, Path::new(path), layout, &mut out).expect("a vector takes everything");
    String::from_utf8(out).expect("text")
}

/// Adds a stack of one frame, at a line of a file.
fn line(builder: &mut Builder, filename: &str, line: u32) -> u32 {
    builder.calls(&[(filename, &format!("function{line}"), line)])
}

/// Two lines with 900 and 100 blocks, and a history of 100 minutes.
fn service(end: End) -> Builder {
    let mut builder = Builder::new(None);
    let [kept, grows] = [7, 9].map(|number| line(&mut builder, "service.c", number));
    builder.blocks(Domain::Native, kept, 0, 100, 900);
    builder.blocks(Domain::Native, grows, 0, 100, 100);
    builder.snapshot.meta.end = end;
    let step = |end, current, greatest, changes: &[_]| step(end, Domain::Native, current, greatest, changes);
    builder.snapshot.history = Some(History {
        begun: BEGUN,
        utc_offset: 3600,
        apart: 4096,
        steps: vec![
            step(0, 0, 0, &[]),
            step(20 * MINUTE, 90_000, 90_000, &[(Some(kept), 90_000)]),
            step(21 * MINUTE, 90_000, 300_000, &[]),
            step(90 * MINUTE, 93_000, 93_000, &[(Some(grows), 3000)]),
            step(100 * MINUTE, 100_000, 100_000, &[(Some(grows), 7000)]),
        ],
        marks: vec![Mark { at: 0, kind: "start".to_string(), text: String::new() }],
    });
    builder
}

#[test]
fn of_a_program_that_has_ended_the_peak_and_what_was_left() {
    let text = shown(service(End::Exited).snapshot, "a b.snap.zst", None);
    let expected = "\
Process 4711: exact; peak: native 293 KiB
victim --grow, exited with status 0; snapshot of 2025-11-21T00:37:00Z

native memory: peak 293 KiB at 03:21:00, 21 min after the start
               left 97.7 KiB in 1000 blocks at the end
|333333333333333883333333333333333333333333333333333333333333333333333333333333|
03:00:00                         100 min in all                         04:40:00

Top lines: native memory live at the peak, and what was left at the end
  KiB   share  left  blocks  line
263.7  90.0 %  87.9    2700  service.c:7  function7
 29.3  10.0 %   9.8     300  service.c:9  function9

report 'a b.snap.zst' --at peak --by tree         # the calls that led there
report 'a b.snap.zst' --by traceback              # what was left, and its calls
report 'a b.snap.zst' --at peak --format html -o peak.html   # a flame graph
";
    assert_eq!(digits(&text), expected);

    let mut nothing_left = service(End::Exited).snapshot;
    nothing_left.live.clear();
    (nothing_left.domains[0].current, nothing_left.domains[0].blocks) = (0, 0);
    let text = shown(nothing_left, "a.snap.zst", None);
    assert!(text.contains("left nothing at the end\n") && !text.contains("what was left"), "{text}");
    assert!(text.contains("\nreport a.snap.zst --at total --by function "), "{text}");
}

#[test]
fn of_a_program_that_runs_what_is_live_and_what_grew() {
    let text = shown(service(End::Running).snapshot, "a.snap.zst", None);
    let expected = "
native memory: live 97.7 KiB in 1000 blocks, +7000 B in the last 10 min
               peak 293 KiB at 03:21:00, 21 min after the start
";
    assert!(text.contains(expected), "{text}");
    let expected = "
Top lines: native memory live at the snapshot, and the change in the last 10 min
 KiB   share  change  blocks  line
87.9  90.0 %      +0     900  service.c:7  function7
 9.8  10.0 %    +6.8     100  service.c:9  function9

report a.snap.zst --by tree                    # the calls that led there
report a.snap.zst --leaks                      # what grows, whatever the load
report a.snap.zst --format html -o live.html   # a flame graph
";
    assert!(text.ends_with(expected), "{text}");
    // An older Heapline has recorded no history.
    let without = Snapshot { history: None, ..service(End::Running).snapshot };
    let text = shown(without, "a.snap.zst", None);
    assert!(
        text.contains("\nnative memory: live 97.7 KiB in 1000 blocks\n               peak 293 KiB\n\nTop lines: "),
        "{text}"
    );
    assert!(text.contains("\nreport a.snap.zst --at peak ") && !text.contains("--leaks"), "{text}");
}

/// Five lines of ten: the greatest three, and the two that grew most.
#[test]
fn lines_that_grew_have_a_place_however_small_they_are() {
    let mut builder = Builder::new(None);
    let stacks: Vec<u32> = (0..10).map(|number| line(&mut builder, "a.c", number)).collect();
    let size = |number: u64| 1000 - 10 * number;
    stacks.iter().zip(0..).for_each(|(&stack, number)| builder.blocks(Domain::Native, stack, 0, size(number), 1));
    builder.snapshot.meta.end = End::Running;
    let all = |minus: i64| -> Vec<_> {
        stacks
            .iter()
            .zip(0..)
            .map(|(&stack, n)| (Some(stack), size(n).cast_signed() - minus * i64::from(n > 7)))
            .collect()
    };
    let grown: Vec<_> = stacks[8..].iter().map(|&stack| (Some(stack), 300)).collect();
    let steps = vec![
        step(90 * MINUTE, Domain::Native, 8950, 8950, &all(300)),
        step(100 * MINUTE, Domain::Native, 9550, 9550, &grown),
    ];
    builder.snapshot.history = Some(History { begun: BEGUN, apart: 4096, steps, ..History::default() });
    let text = shown(builder.snapshot, "a.snap.zst", None);
    let rows = "
   B   share  change  blocks  line
1000  10.5 %      +0       1  a.c:0  function0
 990  10.4 %      +0       1  a.c:1  function1
 980  10.3 %      +0       1  a.c:2  function2
 920   9.6 %    +300       1  a.c:8  function8
 910   9.5 %    +300       1  a.c:9  function9
4750  49.7 %      +0       5  5 more lines
";
    assert!(text.contains(rows), "{text}");
}

#[test]
fn the_peak_is_that_since_it_was_reset() {
    let mut builder = service(End::Running);
    builder.snapshot.domains[0].peak = 100_000;
    let history = builder.snapshot.history.as_mut().expect("a history");
    history.marks.push(Mark { at: 30 * MINUTE, kind: "reset-peak".to_string(), text: String::new() });
    let text = shown(builder.snapshot.clone(), "a.snap.zst", None);
    assert!(text.contains(" peak 97.7 KiB between 04:30:00 and 04:40:00\n"), "{text}");
    builder.snapshot.domains[0].peak = 90_000;
    let text = shown(builder.snapshot.clone(), "a.snap.zst", None);
    assert!(text.contains(" peak 87.9 KiB\n"), "the step with the peak is not known: {text}");
    builder.snapshot.history.as_mut().expect("a history").begun += 20 * 60 * MINUTE;
    builder.snapshot.domains[0].peak = 100_000;
    let text = shown(builder.snapshot, "a.snap.zst", None);
    assert!(text.contains(" between 2026-11-29 00:30:00 and 2026-11-29 00:40:00\n"), "{text}");
    assert!(text.contains("\n2026-11-28 23:00:00 "), "{text}");
}

#[test]
fn the_layer_is_the_one_with_nearly_all_of_the_memory() {
    let mut builder = service(End::Exited);
    let stack = line(&mut builder, "map.c", 3);
    builder.blocks(Domain::Mmap, stack, 0, 64 << 20, 1);
    let text = shown(builder.snapshot.clone(), "a.snap.zst", None);
    assert!(text.contains("; peaks: mmap 192 MiB, native 293 KiB\n"), "{text}");
    assert!(text.contains("\nmmap memory: peak 192 MiB\n"), "{text}");
    assert!(text.contains("\nreport a.snap.zst --domain mmap --at peak --by tree "), "{text}");
    let mut python = service(End::Exited);
    python.blocks(Domain::Python, 0, 0, 12 << 20, 1);
    python.blocks(Domain::Native, 0, 0, 20 << 20, 1);
    let text = shown(python.snapshot.clone(), "a.snap.zst", None);
    assert!(text.contains("\npython memory: peak 36.0 MiB\n"), "much of malloc's memory is Python's: {text}");
    python.blocks(Domain::Native, 0, 0, 20 << 20, 1);
    let text = shown(python.snapshot, "a.snap.zst", None);
    assert!(text.contains("\nnative memory: peak 120 MiB\n"), "an extension has more: {text}");
    assert!(text.contains("\nreport a.snap.zst --domain native --at peak --by tree"), "{text}");
    // Whoever has no records is told so, whatever is mapped.
    builder.snapshot.live.retain(|row| row.domain == Domain::Mmap);
    builder.snapshot.totals.retain(|row| row.domain == Domain::Mmap);
    builder.snapshot.domains.retain(|row| row.domain == Domain::Mmap);
    let text = shown(builder.snapshot, "a.snap.zst", None);
    assert!(text.contains("\nNO RECORDS: nothing but mappings (--domain mmap) was recorded"), "{text}");
    assert!(text.contains("Usual reasons: the executable brings its own malloc"), "{text}");
    assert!(text.ends_with("\nreport a.snap.zst --domain mmap   # what the program itself has mapped\n"), "{text}");
}

#[test]
fn the_program_shows_it_without_a_choice_only() {
    let scene = scene();
    let text = scene.says(&[]);
    let rows = "
Top lines: native memory live at the peak, and what was left at the end
 KiB  share  left  blocks  line
29.6  100 %   9.9      39  .../programs/inlines.c:5  innermost
";
    assert!(text.contains(rows), "{text}");
    assert!(text.contains(&format!("\nreport {} --at peak --by tree", scene.path())), "{text}");
    assert!(scene.says(&["--at", "live"]).contains("\nTop line: native memory live at the snapshot\n#1: "));
    let file = scene.dir.path().join("overview.txt");
    assert_eq!(scene.says(&["-o", file.to_str().unwrap(), "--no-config"]), "");
    assert_eq!(std::fs::read_to_string(file).unwrap(), text);
    let dir = tempdir().unwrap();
    let empty = Builder::new(None).save(dir.path(), "it's.snap.zst");
    let output = report(&[empty.to_str().unwrap()]);
    assert!(output.status.success() && stdout(&output).contains("\nNO RECORDS: nothing was recorded of this program"));
    assert!(stdout(&output).contains(r"/it'\''s.snap.zst' -v   # all facts"), "{}", stdout(&output));
    assert_eq!(stderr(&output), "");
}

/// A shell runs each command as it stands, whatever the name of the file.
#[test]
fn the_commands_that_lead_on_work_in_a_shell() {
    let dir = tempdir().unwrap();
    let folder = Path::new(env!("CARGO_BIN_EXE_report")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    for (name, end) in
        [("it's \"$HOME\" #1.snap.zst", End::Exited), ("-v.snap.zst", End::Running), ("é*?.zst", End::Killed)]
    {
        service(end).save(dir.path(), name);
        let run = |command: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", command]).current_dir(&dir).env("PATH", &path).env_remove("HOME");
            let output = shell.output().unwrap();
            assert!(output.status.success(), "{command}: {}", stderr(&output));
            stdout(&output)
        };
        let overview = Command::new(env!("CARGO_BIN_EXE_report")).arg(format!("./{name}")).current_dir(&dir).output();
        let overview = stdout(&overview.unwrap());
        let commands: Vec<&str> = overview.lines().filter(|line| line.starts_with("report ")).collect();
        assert_eq!(commands.len(), 3, "{overview}");
        for command in commands {
            let shown = run(command);
            assert!(shown.contains("Process 4711: exact;") || command.contains(" -o "), "{command}: {shown}");
        }
        let page = if end == End::Running { "live.html" } else { "peak.html" };
        assert!(std::fs::read_to_string(dir.path().join(page)).unwrap().contains("victim --grow (4711)"));
    }
}

/// Replaces the bars of a line over time by their heights.
fn digits(text: &str) -> String {
    let height = |c: char| match u32::from(c) {
        bar @ 0x2581..=0x2588 => char::from_digit(bar - 0x2580, 10).expect("a digit"),
        _ => c,
    };
    text.chars().map(height).collect()
}

/// Texts as they come from hostile processes: of any length, wide, and with commands to a terminal.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("/usr/share/an application/lib"),
        Just("\u{754c}\u{9762}\u{6d4b}\u{8bd5}"),
        Just("std::map<int, std::vector<char>>::find"),
        Just("\u{1b}[2J\u{202e}\n"),
        Just("e\u{301}\u{1f469}\u{200d}\u{1f680}"),
        Just("--option=value "),
    ];
    prop::collection::vec(part, 0..30).prop_map(|parts| parts.concat())
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let domain = prop_oneof![3 => Just(Domain::Native), 1 => Just(Domain::Mmap), 1 => Just(Domain::Python), 1 => Just(Domain::Track(9))];
    let size = prop_oneof![0..100_u64, 0..1_u64 << 30, 0..1_u64 << 50];
    let rows = prop::collection::vec((domain.clone(), text(), size, 0..9_u64), 0..12);
    let end =
        prop_oneof![Just(End::Running), Just(End::Exited), Just(End::Killed), Just(End::Detached), Just(End::Stalled)];
    let steps = prop::collection::vec((0..1_000_000_u64, 0..9_u32, domain, any::<i64>(), any::<u64>()), 0..9);
    let facts =
        (prop::collection::vec(text(), 0..10), prop::collection::vec(text(), 0..5), any::<bool>(), any::<u64>());
    (text(), rows, end, steps, any::<bool>(), facts).prop_map(|(command, rows, end, steps, is_sampled, facts)| {
        let mut builder = Builder::new(None);
        let stacks: Vec<u32> = rows.iter().zip(0..).map(|((_, name, ..), n)| line(&mut builder, name, n)).collect();
        for ((domain, _, size, count), &stack) in rows.iter().zip(&stacks) {
            builder.blocks(*domain, stack, 0, *size, *count);
        }
        let snapshot = &mut builder.snapshot;
        (snapshot.meta.command, snapshot.meta.end, snapshot.meta.exit_status) = (command, end, None);
        let (notes, unseen, is_attached, lost) = facts;
        snapshot.meta.notes = notes;
        let cause =
            |name: String| Unseen { kind: "allocator".to_string(), object: name.clone(), text: name.clone(), name };
        snapshot.meta.unseen = unseen.into_iter().map(cause).collect();
        snapshot.meta.begun = if is_attached { Begun::Attach } else { Begun::Fork };
        snapshot.meta.lost.insert("slots".to_string(), lost / 2);
        if is_sampled {
            snapshot.meta.sample_interval = 1 << 19;
            snapshot.sampled = stacks.iter().map(|&stack| Sampled { stack, interval: 1 << 19, size: 64 }).collect();
        }
        let mut time = 0;
        let mut of = |(length, stack, domain, size, greatest): &(u64, u32, Domain, i64, u64)| {
            time += length * 1000;
            let stack = stacks.get(*stack as usize).copied();
            step(time, *domain, *greatest, *greatest, &[(stack, *size)])
        };
        let steps: Vec<Step> = steps.iter().map(&mut of).collect();
        let history = History { begun: BEGUN, utc_offset: -3600, apart: 4096, steps, marks: Vec::new() };
        snapshot.history = (!history.steps.is_empty()).then_some(history);
        builder.snapshot
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No line is wider than the screen, but for commands, which are whole: a terminal breaks them.
    /// With the prompt of the shell below, all lines are on the screen.
    #[test]
    fn whatever_the_snapshot_it_fits_a_screen(snapshot in any_snapshot(), path in text(), is_terminal: bool) {
        let text = shown(snapshot, &format!("x{path}"), is_terminal.then_some(80));
        let mut lines = 0;
        for line in text.lines() {
            prop_assert!(line.width() <= 80 || line.starts_with("report "), "{}", text);
            prop_assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{}", text);
            lines += line.width().div_ceil(80).max(1);
        }
        prop_assert!(lines <= 23, "{} lines:\n{}", lines, text);
        prop_assert!(text.contains("\nreport "), "{}", text);
    }
}
