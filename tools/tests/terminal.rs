//! Tests of the whole program on a terminal: columns, widths, colours.

mod support;

use heapline_shared_format::snapshot::history::{Change, Changes, Step};
use heapline_shared_format::snapshot::{Birth, Domain, History, Module, Origin};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use support::scene::{report, scene, stdout};
use support::snapshot::{BASE, Builder};
use tempfile::tempdir;

/// Runs `report` with a terminal of this width as standard output. Returns all that it shows.
fn shown(width: u16, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let screen = OpenOptions::new().read(true).write(true).open(name).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_report"));
    command.args(arguments).stdin(Stdio::null()).stdout(screen).stderr(Stdio::piped());
    for variable in ["XDG_CACHE_HOME", "HOME", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "CI"] {
        command.env_remove(variable);
    }
    command.env("TERM", "xterm").envs(environment.iter().copied());
    let child = command.spawn().unwrap();
    // The last writer's end is an error for the reader of a terminal.
    drop(command);
    let (mut text, mut part) = (Vec::new(), [0; 4096]);
    let mut terminal = File::from(terminal);
    while let Ok(read @ 1..) = terminal.read(&mut part) {
        text.extend_from_slice(&part[..read]);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(text).unwrap().replace("\r\n", "\n")
}

fn plain(width: u16, arguments: &[&str]) -> String {
    shown(width, arguments, &[("NO_COLOR", "1")])
}

/// A process with long names: `rows` modules without symbols, in deep folders.
fn long_names(dir: &Path, rows: u64) -> String {
    let mut builder = Builder::new(None);
    builder.snapshot.meta.command = "/opt/a/very/deep/folder/of/a/service --with many --words 1 2 3".to_string();
    for row in 0..rows {
        let start = BASE + (row << 20);
        let path = format!("/opt/some/company/releases/2025-11-21/lib/plugins/component-{row}/libcomponent-{row}.so");
        builder.snapshot.modules.push(Module {
            path,
            build_id: Vec::new(),
            start,
            end: start + (1 << 20),
            bias: start,
            loaded: true,
        });
        let stack = builder.stack(&[start + 0x10, start + 0x123]);
        let last = builder.snapshot.frames.len();
        builder.snapshot.frames[last - 2..]
            .iter_mut()
            .for_each(|frame| frame.module = Some(u32::try_from(row).unwrap()));
        builder.blocks(Domain::Native, stack, 0, (20 << 20) >> (3 * row), 1);
    }
    builder.save(dir, "long.snap.zst").to_str().unwrap().to_string()
}

#[test]
fn rows_are_aligned_columns_of_one_unit() {
    let dir = tempdir().unwrap();
    let text = plain(120, &[&long_names(dir.path(), 6), "--by", "module", "--limit", "5"]);
    let expected = "
Top 5 modules: native memory live at the snapshot
#   MiB   share  blocks  module
1  20.0  87.5 %       1  /opt/some/company/releases/2025-11-21/lib/plugins/component-0/libcomponent-0.so
2   2.5  10.9 %       1  /opt/some/company/releases/2025-11-21/lib/plugins/component-1/libcomponent-1.so
3   0.3   1.4 %       1  /opt/some/company/releases/2025-11-21/lib/plugins/component-2/libcomponent-2.so
4  <0.1   0.2 %       1  /opt/some/company/releases/2025-11-21/lib/plugins/component-3/libcomponent-3.so
5  <0.1  <0.1 %       1  /opt/some/company/releases/2025-11-21/lib/plugins/component-4/libcomponent-4.so
   <0.1  <0.1 %       1  1 more row
   22.9   100 %       6  total
";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn no_row_is_wider_than_the_terminal() {
    let dir = tempdir().unwrap();
    let snapshot = long_names(dir.path(), 3);
    for width in [20, 40, 60, 80, 200] {
        for by in ["lineno", "filename", "function", "module", "traceback", "size", "thread"] {
            let text = plain(width, &[&snapshot, "--by", by]);
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            assert!(widest <= usize::from(width), "{by}: {widest} of {width}\n{text}");
            if width >= 40 && ["lineno", "filename", "module", "traceback"].contains(&by) {
                assert!((0..3).all(|row| text.contains(&format!("libcomponent-{row}.so"))), "{width}, {by}: {text}");
            }
        }
    }
    let text = plain(80, &[&snapshot]);
    assert!(text.contains("\nservice --with many"), "the folders of the command give way: {text}");
    let text = plain(80, &[&snapshot, "-v"]);
    let whole = "/opt/some/company/releases/2025-11-21/lib/plugins/component-0/libcomponent-0.so";
    assert!(text.contains(whole), "a verbose report has whole names: {text}");
}

#[test]
fn source_lines_stand_below_their_rows() {
    let scene = scene();
    let text = plain(200, &[scene.path(), "--source"]);
    let row = text.lines().position(|line| line.contains("inlines.c:5")).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(text.lines().nth(row + 1).map(str::trim), Some("return malloc(n);"), "{text}");
    let text = plain(200, &[scene.path(), "--source", "--by", "traceback", "--limit", "1"]);
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("#1")).collect();
    assert_eq!(lines[0], "#1 10100 B in 12 blocks, 99.9 %");
    assert!(lines[1].starts_with("  > ") && lines[1].ends_with("inlines.c:5   innermost"), "the blamed frame: {text}");
    assert_eq!(lines[2].trim(), "return malloc(n);", "{text}");
    assert!(lines[7].starts_with("    ") && lines[7].ends_with("inlines.c:22  main"), "{text}");
    assert_eq!(lines[9], "1 more row: 7 B in 1 block, 0.1 %");
}

#[test]
fn a_diff_has_columns_of_changes() {
    let scene = scene();
    let mut builder = Builder::new(None);
    let stack = builder.stack(&[0x1000]);
    builder.blocks(Domain::Native, stack, 0, 7, 2);
    let old = builder.save(scene.dir.path(), "old.snap.zst");
    let text = plain(80, &[scene.path(), "--by", "size", "--diff", old.to_str().unwrap()]);
    let expected = "
Top 3 sizes: differences of native memory live at the snapshot
#      B  change  blocks  change  each
1  10000  +10000      10     +10  blocks of 1000 B
2    100    +100       2      +2  blocks of 50 B
3      7      -7       1      -1  blocks of 7 B
   10107  +10093      13          total
";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn a_line_that_grows_has_its_speed_and_its_memory_over_time() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let leak = builder.calls(&[("/app/main.py", "main", 1), ("/app/cache.py", "remember", 7)]);
    builder.blocks(Domain::Native, leak, 0, 1000, 121);
    let change =
        Change { domain: Domain::Native, stack: Some(leak), size: 1000, count: 1, allocated_bytes: 0, allocs: 1 };
    let changes = Changes::encode(&[change]);
    let steps = (0..=120).map(|minute| Step { end: minute * 60_000, changes: changes.clone(), ..Step::default() });
    builder.snapshot.history = Some(History { steps: steps.collect(), apart: 4096, ..History::default() });
    let path = builder.save(dir.path(), "leak.snap.zst");
    let path = path.to_str().unwrap();
    let expected = "
1 line grows: native memory live at 1970-01-01T02:00:00Z
#    KiB  blocks    an hour    sure      over the run  line
1  118.2     121  +58.6 KiB  99.9 %  ▁▂▂▃▃▄▄▅▅▆▆▇▇███  /app/cache.py:7  remember
   118.2     121                                       all memory
";
    let text = plain(80, &[path, "--leaks"]);
    assert!(text.ends_with(expected), "{text}");
    let text = plain(80, &[path, "--leaks", "--by", "traceback"]);
    assert!(text.contains("\n    +58.6 KiB an hour, 99.9 % sure  |▁"), "{text}");
}

#[test]
fn colours_are_for_terminals_and_for_those_who_ask() {
    let scene = scene();
    let is_coloured = |text: &str| text.contains("\u{1b}[");
    assert!(is_coloured(&shown(80, &[scene.path()], &[])));
    assert!(!is_coloured(&shown(80, &[scene.path()], &[("NO_COLOR", "1")])));
    assert!(!is_coloured(&shown(80, &[scene.path()], &[("TERM", "dumb")])));
    assert!(!is_coloured(&shown(80, &[scene.path(), "--format", "csv"], &[])));
    assert!(!is_coloured(&stdout(&report(&[scene.path()]))));
    let piped = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_report"));
        command.arg(scene.path()).args(arguments).envs(variables.iter().copied()).env_remove("HOME");
        stdout(&command.output().unwrap())
    };
    assert!(is_coloured(&piped(&[("CLICOLOR_FORCE", "1")], &[])));
    let forced = piped(&[("CLICOLOR_FORCE", "1")], &["--by", "lineno"]);
    assert!(is_coloured(&forced));
    assert!(!is_coloured(&piped(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], &[])));
    assert!(!is_coloured(&piped(&[("CLICOLOR_FORCE", "1")], &["--format", "json"])));
    // Colours change nothing else: a pipe has the form for scripts.
    assert!(forced.contains("Total allocated size: ") && forced.contains("#1: "), "{forced}");
    let file = scene.dir.path().join("report.txt");
    piped(&[("CLICOLOR_FORCE", "1")], &["-o", file.to_str().unwrap()]);
    assert!(!is_coloured(&std::fs::read_to_string(file).unwrap()));
}

/// Names may hold commands to a terminal, and marks that change the direction of writing.
#[test]
fn hostile_names_stay_harmless_on_a_terminal() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let name = "evil\u{1b}[2J\u{202e}\u{9b}31m";
    builder.snapshot.meta.command = name.repeat(9);
    builder.snapshot.meta.notes.push(name.to_string());
    builder.snapshot.threads[0].name = name.to_string();
    let path = format!("/{name}/{name}");
    let (start, end) = (BASE, BASE + (1 << 20));
    builder.snapshot.modules.push(Module { path, build_id: Vec::new(), start, end, bias: BASE, loaded: true });
    let stack = builder.stack(&[BASE + 16]);
    builder.blocks(Domain::Native, stack, 0, 64, 1);
    let snapshot = builder.save(dir.path(), "a.snap.zst");
    for by in ["lineno", "function", "module", "traceback", "thread"] {
        for verbose in [&[][..], &["-v"]] {
            let text = plain(60, &[&[snapshot.to_str().unwrap(), "--by", by], verbose].concat());
            let commands = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!text.contains(commands), "{by}: {text:?}");
        }
    }
}

#[test]
fn a_tree_is_a_table_of_programs() {
    let dir = tempdir().unwrap();
    let process = |pid: u32, parent: Option<u32>, size: u64| {
        let mut builder = Builder::new(None);
        let stack = builder.stack(&[0x1000]);
        builder.blocks(Domain::Native, stack, 0, size, 1);
        builder.snapshot.meta.pid = pid;
        builder.snapshot.meta.command = format!("victim: client {pid}");
        let inherited = Some([("native".to_string(), 300)].into());
        builder.snapshot.origin = parent.map(|parent| Origin { parent, birth: Birth::Fork, inherited });
        builder.save(dir.path(), &format!("{pid}.snap.zst"));
    };
    process(1, None, 100 << 20);
    (10..15).for_each(|pid| process(pid, Some(1), u64::from(pid) << 20));
    let tree = ["--tree", dir.path().to_str().unwrap()];
    let text = plain(80, &tree);
    let expected = "\
Tree of 6 processes: exact; peaks together: native 480 MiB
victim: client 1 and its children; snapshot of 2025-11-21T00:37:00Z
Processes: native memory in MiB, inherited blocks
process   live   peak  greatest  median  inherited  program
      1  100.0  300.0                               victim: client 1
    5 x   60.0  180.0      42.0    36.0        300    victim
native: current 160 MiB in 6 blocks, peaks together 480 MiB; 24 allocated
(640 MiB), 18 freed since the start
";
    assert!(text.starts_with(expected), "{text}");
    let each = plain(80, &[&tree[..], &["-v", "--limit", "3"]].concat());
    let rows = "
process   live   peak  inherited  program
      1  100.0  300.0             victim: client 1
     14   14.0   42.0        300    victim: client 14
     13   13.0   39.0        300    victim: client 13
  3 more processes are not shown: --limit 0 shows all
";
    assert!(each.contains(rows), "{each}");
}
