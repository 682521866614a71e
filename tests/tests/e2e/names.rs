//! Names of functions, files and lines that a snapshot carries: the files of the program are
//! replaced, removed, or out of reach when `report` reads the snapshot.
//!
//! A test reads a snapshot with an empty home folder and an empty symbol cache, as a user on
//! another machine.

use crate::support::stepped::{Stepped, detach, ended};
use crate::support::trace::{Trace, ctl_ok, read_snapshot};
use crate::support::victim::{self, copy_with_libraries, line_of};
use crate::support::{find_in_path, has, is_root, programs, skip, stdout_of, wait_for};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Groupings and moments of a report. Each shows the names in another way.
const VIEWS: [&[&str]; 6] = [
    &["--by", "traceback"],
    &["--by", "traceback", "--raw-frames"],
    &["--by", "lineno", "--at", "total"],
    &["--by", "lineno", "--cumulative"],
    &["--by", "function", "--at", "peak"],
    &["--by", "filename", "--blame", "leaf"],
];

/// Bytes of the block that `upgraded.c` keeps.
const SESSION: u64 = 3001;

/// A function, the last part of the file's path, and a line.
type Place = (String, String, u64);

fn place(function: &str, file: &str, line: u64) -> Place {
    (function.to_owned(), file.to_owned(), line)
}

/// The places of `session` in the victim that was started, the most recent first.
fn session() -> [Place; 3] {
    let at = |marker: &str| line_of("upgraded.c", &format!("// LINE {marker}"));
    [
        place("session", "upgraded.c", at("session")),
        place("keep_session", "upgraded.c", at("keep_session")),
        place("step", "upgraded.c", at("step")),
    ]
}

/// Runs `report SNAPSHOT --format json --limit 0 OPTIONS` with an empty home folder.
fn document(snapshot: &Path, options: &[&str]) -> Value {
    let mut command = Command::new(&programs().report);
    command.arg(snapshot).args(["--format", "json", "--limit", "0"]).args(options);
    let home = TempDir::new().expect("a folder");
    parsed(command.env("HOME", home.path()).env("XDG_CACHE_HOME", home.path().join("cache")))
}

fn parsed(command: &mut Command) -> Value {
    let text = stdout_of(command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command:?}: {e}\n{text}"))
}

/// The frames of the blocks of `size` bytes each, the most recent first. All such blocks are to
/// have one traceback.
fn frames(document: &Value, size: u64) -> Vec<Value> {
    let rows = document["stats"].as_array().expect("rows").iter();
    let of_size = |row: &&Value| row["count"].as_u64().is_some_and(|n| row["size"] == n * size);
    let rows: Vec<&Value> = rows.filter(of_size).collect();
    let &[row] = rows.as_slice() else { panic!("{} tracebacks of {size} bytes: {document:#}", rows.len()) };
    row["traceback"].as_array().expect("frames").iter().rev().cloned().collect()
}

fn places(document: &Value, size: u64) -> Vec<Place> {
    let text = |frame: &Value, field: &str| frame[field].as_str().expect("a text").to_owned();
    let file = |frame: &Value| text(frame, "filename").rsplit('/').next().unwrap_or_default().to_owned();
    let frames = frames(document, size);
    frames.iter().map(|f| (text(f, "function"), file(f), f["lineno"].as_u64().expect("a number"))).collect()
}

/// Checks the names of the blocks of [`SESSION`] bytes.
#[track_caller]
fn assert_session(snapshot: &Path, what: &str) {
    let places = places(&document(snapshot, &["--by", "traceback"]), SESSION);
    assert_eq!(places.get(..3), Some(&session()[..]), "{what}");
}

/// Checks that the text has the names of the block in a `ctl lookup`.
#[track_caller]
fn assert_lookup(pid: i32, address: &str) {
    let text = ctl_ok(pid, &["lookup", address]);
    for (function, file, line) in session() {
        let has = |l: &str| l.contains(&function) && l.contains(&file) && l.contains(&line.to_string());
        assert!(text.lines().any(has), "{function} at {file}, line {line}:\n{text}");
    }
}

/// A copy of `upgraded.c`, compiled with `flags`, at `folder/name`.
fn service(folder: &Path, name: &str, flags: &[&str]) -> PathBuf {
    copied(&victim::build("upgraded.c", &[&["-O1"], flags].concat()), folder, name)
}

/// Copies a file by `cp`. A program that this process itself had written could be busy: a child
/// forked meanwhile by another test has the file open, until the child's exec.
fn copied(file: &Path, folder: &Path, name: &str) -> PathBuf {
    let copy = folder.join(name);
    stdout_of(Command::new("cp").arg(file).arg(&copy));
    copy
}

/// Attaches to a service whose file is gone, and checks the names in every way to learn them:
/// `ctl lookup`, `ctl snapshot`, and the snapshots of a detach and of the process's end.
fn assert_names_after_an_attach(mut service: Stepped) {
    let [asked, detached, last] =
        ["asked", "detached", "last"].map(|name| service.snapshot_path(&format!("{name}.snap.zst")));
    let aggregator = service.attach(&detached, &[]);
    service.step(b'k');
    let address = service.line(b'a');
    assert_lookup(service.pid(), &address);
    ctl_ok(service.pid(), &["snapshot", "-o", asked.to_str().expect("UTF-8")]);
    detach(aggregator);
    let aggregator = service.attach(&last, &[]);
    service.step(b'k');
    let kept = std::mem::replace(&mut service.folder, TempDir::new().expect("a folder"));
    assert_eq!(service.finish(), 0);
    ended(aggregator);
    assert_session(&asked, "ctl snapshot");
    assert_session(&detached, "detach");
    assert_session(&last, "end of the process");
    drop(kept);
}

#[test]
fn a_program_replaced_before_the_attach_has_its_names() {
    let folder = TempDir::new().expect("a folder");
    let program = service(folder.path(), "service", &[]);
    let started = Stepped::start(&mut Command::new(&program));
    fs::rename(service(folder.path(), "new", &["-DUPGRADED"]), &program).expect("replaced");
    assert_names_after_an_attach(started);
}

#[test]
fn a_program_deleted_before_the_attach_has_its_names() {
    let folder = TempDir::new().expect("a folder");
    let program = service(folder.path(), "service", &[]);
    let started = Stepped::start(&mut Command::new(&program));
    drop(folder);
    assert!(!program.exists());
    assert_names_after_an_attach(started);
}

/// Starts `aggregator run` on the program, and returns the process id of the command, too.
fn started(program: &Path, arguments: &[&Path], snapshot: &Path) -> (Stepped, i32) {
    let mut command = Command::new(&programs().aggregator);
    command.args(["run", "-o"]).arg(snapshot).arg("--").arg(program).args(arguments);
    let started = Stepped::start(&mut command);
    let children = format!("/proc/{0}/task/{0}/children", started.pid());
    let pid = wait_for("the command's process", || {
        fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()
    });
    (started, pid)
}

#[test]
fn a_program_replaced_or_deleted_while_it_is_traced_has_its_names() {
    for new in [Some(&["-DUPGRADED"]), None] {
        let folder = TempDir::new().expect("a folder");
        let (snapshot, asked) = (folder.path().join("out.snap.zst"), folder.path().join("asked.snap.zst"));
        let program = service(folder.path(), "service", &[]);
        let (mut traced, pid) = started(&program, &[], &snapshot);
        traced.step(b'k');
        match new {
            Some(flags) => fs::rename(service(folder.path(), "new", flags), &program).expect("replaced"),
            None => fs::remove_file(&program).expect("removed"),
        }
        traced.step(b'k');
        let address = traced.line(b'a');
        assert_lookup(pid, &address);
        ctl_ok(pid, &["snapshot", "-o", asked.to_str().expect("UTF-8")]);
        traced.step(b'k');
        assert_eq!(traced.finish(), 0);
        assert_session(&asked, "ctl snapshot");
        assert_session(&snapshot, "end of the command");
    }
}

#[test]
fn an_unloaded_plugin_whose_file_was_replaced_has_its_lines() {
    let folder = TempDir::new().expect("a folder");
    let snapshot = folder.path().join("out.snap.zst");
    let flags = ["-O1", "-shared", "-fPIC"];
    let [a, b] = [&flags[..], &[&flags[..], &["-DPLUGIN_B"]].concat()].map(|flags| victim::build("plugin.c", flags));
    let plugin = copied(&a, folder.path(), "plugin.so");
    let next = copied(&b, folder.path(), "next.so");
    let (mut traced, pid) = started(&victim::build("upgraded.c", &["-O1"]), &[&plugin], &snapshot);
    traced.step(b'l');
    // A snapshot waits for the names, so the file has been opened then.
    let asked = folder.path().join("asked.snap.zst");
    let names_are_known = || ctl_ok(pid, &["snapshot", "-o", asked.to_str().expect("UTF-8")]);
    names_are_known();
    fs::rename(next, &plugin).expect("replaced");
    traced.step(b'l');
    names_are_known();
    fs::remove_file(&plugin).expect("removed");
    assert_eq!(traced.finish(), 0);
    let document = document(&snapshot, &["--by", "traceback"]);
    for (size, marker) in [(2001, "grab_a"), (2000, "grab_b")] {
        let line = line_of("plugin.c", &format!("// LINE {marker}"));
        assert_eq!(places(&document, size).first(), Some(&place("grab", "plugin.c", line)), "{marker}");
    }
}

#[test]
fn an_earlier_image_has_the_names_of_its_removed_file() {
    let folder = TempDir::new().expect("a folder");
    let snapshot = folder.path().join("out.snap.zst");
    let program = service(folder.path(), "service", &[]);
    let (mut traced, pid) = started(&program, &[Path::new("/bin/true")], &snapshot);
    traced.step(b'k');
    // A snapshot waits for the names, so the file has been opened then.
    ctl_ok(pid, &["snapshot", "-o", folder.path().join("before.zst").to_str().expect("UTF-8")]);
    fs::remove_file(&program).expect("removed");
    traced.ask(b'x');
    assert_eq!(traced.finish(), 0);
    assert_session(&folder.path().join("out.snap.zst.exec1"), "the image before the exec");
}

/// A file that runs is renamed, as upgrades do: the program is the program that began.
#[test]
fn a_renamed_program_is_no_other_program() {
    let folder = TempDir::new().expect("a folder");
    let snapshot = folder.path().join("out.snap.zst");
    let place = folder.path().join("app");
    fs::create_dir(&place).expect("a folder");
    let program = service(&place, "service", &[]);
    let (mut traced, pid) = started(&program, &[], &snapshot);
    traced.step(b'k');
    ctl_ok(pid, &["stats"]);
    fs::rename(&program, place.join("service.old")).expect("renamed");
    ctl_ok(pid, &["snapshot", "-o", folder.path().join("now.zst").to_str().expect("UTF-8")]);
    fs::rename(&place, folder.path().join("app.old")).expect("renamed");
    assert_eq!(traced.finish(), 0);
    assert_session(&snapshot, "the renamed program");
    assert!(!snapshot.with_extension("zst.exec1").exists(), "no program was replaced");
    assert_eq!(Path::new(&read_snapshot(&snapshot).meta.executable), program);
}

#[test]
fn children_have_the_names_of_their_removed_files() {
    let folder = TempDir::new().expect("a folder");
    let snapshots = folder.path().join("snapshots");
    fs::create_dir(&snapshots).expect("a folder");
    let program = copied(&victim::build("lines.c", &["-O1"]), folder.path(), "lines");
    let script = format!("'{0}'; '{0}'; true", program.display());
    let mut command = Command::new(&programs().aggregator);
    stdout_of(command.args(["run", "-o"]).arg(&snapshots).args(["--", "sh", "-c", &script]));
    let children: Vec<PathBuf> = fs::read_dir(&snapshots)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("heapline-lines-")))
        .collect();
    assert_eq!(children.len(), 2, "{children:?}");
    fs::remove_file(&program).expect("removed");
    let plain = place("plain", "lines.c", line_of("lines.c", "// LINE plain"));
    for child in children {
        assert_eq!(places(&document(&child, &["--by", "traceback"]), 1001).first(), Some(&plain));
    }
}

/// Whether a mount namespace can be made here. Skips the test with a message if not.
fn can_unshare() -> bool {
    if !is_root() || !has("unshare") {
        return false;
    }
    let can = Command::new("unshare").args(["--mount", "--pid", "--fork", "true"]).status();
    let can = can.is_ok_and(|status| status.success());
    if !can {
        skip("mount namespaces cannot be made here");
    }
    can
}

/// A container's image is a file system of the container alone.
#[test]
fn a_program_that_only_its_own_mount_namespace_has_has_its_names() {
    if !can_unshare() {
        return;
    }
    let folder = TempDir::new().expect("a folder");
    let image = folder.path().join("image");
    fs::create_dir(&image).expect("a folder");
    let program = victim::build("upgraded.c", &["-O1"]);
    let (from, to) = (program.display(), image.display());
    let script = format!("mount -t tmpfs none '{to}' && cp '{from}' '{to}/service' && exec '{to}/service'");
    let mut command = Command::new("unshare");
    let started = Stepped::start(command.args(["--mount", "--propagation", "private", "sh", "-c", &script]));
    assert_eq!(fs::read_dir(&image).expect("a folder").count(), 0, "the host has no such file");
    assert_names_after_an_attach(started);
}

/// C++ with inlined functions and frames of the standard library, in a folder of its own.
fn removable(folder: &Path) -> PathBuf {
    copied(&victim::build("lines.cpp", &["-O2"]), folder, "lines")
}

#[test]
fn a_report_on_another_machine_is_the_same() {
    let folder = TempDir::new().expect("a folder");
    let program = removable(folder.path());
    let outcome = Trace::of(&program).run().expect_code(0);
    let before = VIEWS.map(|view| document(&outcome.snapshot_path(), view));
    let vector = places(&before[0], 4000);
    let main = place("main", "lines.cpp", line_of("lines.cpp", "// LINE vector"));
    assert!(vector.len() > 4 && vector.contains(&main), "inlined functions above main: {vector:?}");
    drop(folder);
    for (view, before) in VIEWS.iter().zip(before) {
        assert_same(&document(&outcome.snapshot_path(), view), &before, view);
    }
}

/// Checks that two documents of one snapshot are equal, and shows the first rows that differ.
#[track_caller]
fn assert_same(found: &Value, wanted: &Value, view: &[&str]) {
    let rows = |document: &Value| document["stats"].as_array().expect("rows").clone();
    for (found, wanted) in rows(found).iter().zip(rows(wanted).iter()) {
        assert_eq!(found, wanted, "{view:?}");
    }
    assert_eq!(found, wanted, "{view:?}");
}

/// The C library of the chroot is found by its path, but nothing else of the program: neither the
/// program, nor the C++ library, nor debug files.
#[test]
fn a_report_without_any_of_the_files_is_the_same() {
    if !is_root() || !has("ldd") {
        return;
    }
    let Some(chroot) = find_in_path("chroot") else { return skip("chroot is not installed") };
    let folder = TempDir::new().expect("a folder");
    let outcome = Trace::of(removable(folder.path())).run().expect_code(0);
    let root = TempDir::new().expect("a folder");
    let report = programs().report.canonicalize().expect("the program");
    copy_with_libraries(&report, root.path());
    fs::copy(outcome.snapshot_path(), root.path().join("out.snap.zst")).expect("a copy");
    for view in VIEWS {
        let mut command = Command::new(&chroot);
        command.arg(root.path()).arg(&report).args(["/out.snap.zst", "--format", "json", "--limit", "0"]).args(view);
        let there = parsed(command.env_clear().env("HOME", "/nowhere"));
        assert_same(&there, &document(&outcome.snapshot_path(), view), view);
    }
}

/// A stripped copy of `lines.c` in `folder`, and a debug file at `debug` with a link to it.
fn with_debug_file(folder: &Path, debug: &Path) -> PathBuf {
    let program = victim::build("lines.c", &["-O2"]);
    fs::create_dir_all(debug.parent().expect("a folder")).expect("a folder");
    let objcopy = |options: &[&str], from: &Path, to: &Path| {
        stdout_of(Command::new("objcopy").args(options).arg(from).arg(to));
    };
    objcopy(&["--only-keep-debug"], &program, debug);
    let stripped = folder.join("lines");
    let link = format!("--add-gnu-debuglink={}", debug.display());
    objcopy(&["--strip-all", &link], &program, &stripped);
    stripped
}

/// The places of `inlined_twice` in lines.c.
fn inlined() -> [Place; 3] {
    let at = |marker: &str| line_of("lines.c", &format!("// LINE {marker}"));
    [
        place("inlined", "lines.c", at("inlined")),
        place("inlined_twice", "lines.c", at("inlined_twice")),
        place("main", "lines.c", at("calls_inlined_twice")),
    ]
}

#[test]
fn a_separate_debug_file_may_be_removed_after_the_run() {
    if !has("objcopy") {
        return;
    }
    let folder = TempDir::new().expect("a folder");
    let program = with_debug_file(folder.path(), &folder.path().join(".debug/lines.debug"));
    let outcome = Trace::of(&program).run().expect_code(0);
    let before = VIEWS.map(|view| document(&outcome.snapshot_path(), view));
    assert_eq!(places(&before[0], 1003).get(..3), Some(&inlined()[..]));
    drop(folder);
    for (view, before) in VIEWS.iter().zip(before) {
        assert_same(&document(&outcome.snapshot_path(), view), &before, view);
    }
}

/// The aggregator has found no symbols, but the reader of the snapshot has the debug file.
#[test]
fn a_debug_file_of_the_reader_is_better_than_no_names() {
    if !has("objcopy") {
        return;
    }
    let (folder, debug) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let program = with_debug_file(folder.path(), &debug.path().join("lines.debug"));
    let outcome = Trace::of(&program).run().expect_code(0);
    let snapshot = outcome.snapshot();
    let module = snapshot.modules.iter().find(|m| m.path.ends_with("/lines")).expect("the program");
    let id: String = module.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let by_id = debug.path().join(".build-id").join(&id[..2]);
    fs::create_dir_all(&by_id).expect("a folder");
    copied(&debug.path().join("lines.debug"), &by_id, &format!("{}.debug", &id[2..]));
    let options = ["--by", "traceback", "--debug-dir", debug.path().to_str().expect("UTF-8")];
    assert_eq!(places(&document(&outcome.snapshot_path(), &options), 1003).get(..3), Some(&inlined()[..]));
    drop(folder);
    assert_eq!(places(&document(&outcome.snapshot_path(), &options), 1003).get(..3), Some(&inlined()[..]));
}

/// The path of the process's map of JIT names.
fn perf_map(pid: i32) -> PathBuf {
    PathBuf::from(format!("/tmp/perf-{pid}.map"))
}

/// Function names of the block of `generated.c`, the most recent first, without what a JIT adds
/// behind the name.
fn jit_functions(snapshot: &Path) -> Vec<String> {
    let document = document(snapshot, &["--by", "traceback"]);
    let places = places(&document, 4001);
    places.iter().map(|(function, ..)| function.split([' ', '+']).next().unwrap_or_default().to_owned()).collect()
}

const JIT: [&str; 5] = ["keep", "jit_inner", "between", "jit_outer", "main"];

#[test]
fn jit_frames_have_the_names_of_a_perf_map() {
    let folder = TempDir::new().expect("a folder");
    let (snapshot, asked) = (folder.path().join("out.snap.zst"), folder.path().join("asked.snap.zst"));
    let (mut traced, pid) = started(&victim::build("generated.c", &["-O1"]), &[Path::new("map")], &snapshot);
    traced.step(b'k');
    ctl_ok(pid, &["snapshot", "-o", asked.to_str().expect("UTF-8")]);
    assert_eq!(traced.finish(), 0);
    fs::remove_file(perf_map(pid)).expect("the victim's map");
    for snapshot in [asked, snapshot] {
        let functions = jit_functions(&snapshot);
        assert_eq!(functions.get(..5).unwrap_or_default(), JIT, "{functions:?}");
    }
}

#[test]
fn jit_frames_have_the_names_of_a_perf_map_after_an_attach() {
    let mut victim = Stepped::start(Command::new(victim::build("generated.c", &["-O1"])).arg("map"));
    let snapshot = victim.snapshot_path("out.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    victim.step(b'k');
    detach(aggregator);
    let functions = jit_functions(&snapshot);
    let (pid, kept) = (victim.pid(), std::mem::replace(&mut victim.folder, TempDir::new().expect("a folder")));
    assert_eq!(victim.finish(), 0);
    fs::remove_file(perf_map(pid)).expect("the victim's map");
    assert_eq!(functions.get(..5).unwrap_or_default(), JIT, "{functions:?}");
    let functions = jit_functions(&snapshot);
    assert_eq!(functions.get(..5).unwrap_or_default(), JIT, "without the map: {functions:?}");
    drop(kept);
}

/// In a container the process has another number and another /tmp.
#[test]
fn the_perf_map_of_a_container_is_found() {
    if !can_unshare() {
        return;
    }
    let folder = TempDir::new().expect("a folder");
    let (program, image) = (victim::build("generated.c", &["-O1"]), folder.path());
    let (from, to) = (program.display(), image.display());
    let script = format!(
        "mount -t tmpfs none '{to}' && cp '{from}' '{to}/generated' && mount --bind '{to}' /tmp && /tmp/generated map; exit $?"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "sh", "-c", &script]);
    let mut container = Stepped::start(&mut command);
    let pid = wait_for("the program in the container", || {
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        descendants(container.pid()).into_iter().find(|&pid| name(pid).trim() == "generated")
    });
    let snapshot = container.snapshot_path("out.snap.zst");
    let mut attach = crate::support::stepped::attach_command(pid, &snapshot);
    let aggregator = attach.spawn().expect("it starts");
    wait_for("the attached aggregator", || crate::support::trace::ctl(pid, &["stats"]).status.success().then_some(()));
    container.step(b'k');
    detach(aggregator);
    let functions = jit_functions(&snapshot);
    assert_eq!(functions.get(..5).unwrap_or_default(), JIT, "{functions:?}");
    container.finish();
}

/// The processes below `pid`.
fn descendants(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.flat_map(|pid: i32| [vec![pid], descendants(pid)].concat()).collect()
}

#[test]
fn jit_frames_have_the_names_of_a_jitdump() {
    let folder = TempDir::new().expect("a folder");
    let snapshot = folder.path().join("out.snap.zst");
    let mut command = Command::new(&programs().aggregator);
    command.args(["run", "-o"]).arg(&snapshot).arg("--").arg(victim::build("generated.c", &["-O1"])).arg("dump");
    let mut traced = Stepped::start(command.current_dir(folder.path()));
    traced.step(b'k');
    assert_eq!(traced.finish(), 0);
    let functions = jit_functions(&snapshot);
    assert_eq!(functions.get(..5).unwrap_or_default(), JIT, "{functions:?}");
}

/// Every user can write to /tmp, and a name is the program's.
#[test]
fn a_perf_map_cannot_hold_up_or_command_anybody() {
    for kind in ["pipe", "rude"] {
        let folder = TempDir::new().expect("a folder");
        let snapshot = folder.path().join("out.snap.zst");
        let (mut traced, pid) = started(&victim::build("generated.c", &["-O1"]), &[Path::new(kind)], &snapshot);
        traced.step(b'k');
        assert_eq!(traced.finish(), 0);
        fs::remove_file(perf_map(pid)).expect("the victim's map");
        assert_eq!(jit_functions(&snapshot).first().map(String::as_str), Some("keep"), "{kind}");
        for format in ["text", "json", "csv", "folded", "html"] {
            let mut report = Command::new(&programs().report);
            let text = stdout_of(report.arg(&snapshot).args(["--format", format]));
            let found = text.chars().find(|&c| c.is_control() && c != '\n');
            assert_eq!(found, None, "{kind}, {format}: {text:?}");
        }
    }
}
