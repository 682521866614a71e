//! Reports name unseen memory: an allocator with a prefix in a library, and the place of most
//! memory.

use crate::support::stepped::{Stepped, detach};
use crate::support::trace::{ctl_ok, read_snapshot};
use crate::support::victim;
use crate::support::{programs, stdout_of};
use heapline_shared_format::snapshot::Snapshot;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NAME: &str = "jemalloc (prefix _rjem_)";

fn library() -> PathBuf {
    victim::build("unseen.c", &["-O1", "-shared", "-fPIC", "-DLIBRARY"])
}

fn program() -> PathBuf {
    victim::build("unseen.c", &["-O1"])
}

fn report(snapshot: &Path, options: &[&str]) -> String {
    stdout_of(Command::new(&programs().report).arg(snapshot).args(options))
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.meta.unseen.iter().map(|cause| cause.name.as_str()).collect()
}

#[test]
fn an_allocator_in_a_library_is_named_wherever_exact_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.snap.zst");
    let mut run = Command::new(&programs().aggregator);
    run.args(["run", "-o"]).arg(&path).arg("--").arg(program()).arg(library());
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    run.stdin.take().expect("piped").write_all(b"mc").expect("it listens");
    let output = run.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("NOT SEEN: {NAME} in ")), "{said}");
    assert!(said.contains("heapline: peak 64.") && said.contains(" MiB mmap, "), "the layer with the memory: {said}");
    assert!(said.contains("Most of this process's memory is in mappings (64."), "{said}");

    let text = report(&path, &["--by", "lineno"]);
    let first = text.lines().next().expect("a line");
    assert!(first.contains(&format!("exact, but for what is not seen: {NAME} in unseen; peaks: mmap ")), "{text}");
    assert!(text.contains("\nNOT SEEN: ") && text.contains("\nMost of this process's memory"), "{text}");
    assert!(!report(&path, &["--domain", "mmap"]).contains("Most of this process's memory"));
    let json: Value = serde_json::from_str(&report(&path, &["--format", "json"])).expect("JSON");
    assert_eq!((&json["snapshot"]["mode"], &json["snapshot"]["unseen"][0]["name"]), (&"partial".into(), &NAME.into()));
    assert_eq!(json["snapshot"]["unseen"][0]["object"], library().to_string_lossy().as_ref());
    let csv = report(&path, &["--format", "csv"]);
    assert!(csv.starts_with(&format!("# NOT SEEN: {NAME}")) && csv.contains("\nsize,count,"), "{csv}");
    let page = report(&path, &["--format", "html"]);
    assert!(page.contains("exact, but for what is not seen") && page.contains("NOT SEEN: "), "{page}");
}

/// The library's code is on no recorded stack. Only the process's map shows the library.
#[test]
fn a_library_that_never_calls_malloc_is_found_among_the_mappings() {
    let victim = Stepped::start(Command::new(program()).arg(library()));
    let path = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&path, &[]);
    let now = victim.snapshot_path("now.snap.zst");
    ctl_ok(victim.pid(), &["snapshot", "-o", now.to_str().expect("text")]);
    let stats = ctl_ok(victim.pid(), &["stats"]);
    assert!(stats.contains(&format!("not seen: {NAME}")), "{stats}");
    let said = detach(aggregator);
    assert!(said.contains(&format!("NOT SEEN: {NAME}")), "{said}");
    for path in [now, path] {
        let snapshot = read_snapshot(&path);
        assert!(!snapshot.modules.iter().any(|module| Path::new(&module.path) == library()));
        assert_eq!(names(&snapshot), [NAME]);
    }
    assert_eq!(victim.finish(), 0);
}

/// An upgrade replaces a library by another file of the same name.
#[test]
fn a_library_whose_file_was_replaced_is_found_among_the_mappings() {
    let folder = tempfile::tempdir().expect("a folder");
    let [place, upgrade] = ["lib.so", "new.so"].map(|name| folder.path().join(name));
    std::fs::copy(library(), &place).expect("copied");
    std::fs::write(&upgrade, "another file").expect("written");
    let victim = Stepped::start(Command::new(program()).arg(&place));
    std::fs::rename(&upgrade, &place).expect("replaced");
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return crate::support::skip("only root may open replaced files");
    }
    let path = victim.snapshot_path("a.snap.zst");
    let said = detach(victim.attach(&path, &[]));
    assert!(said.contains(&format!("NOT SEEN: {NAME} in lib.so")), "{said}");
    assert_eq!(victim.finish(), 0);
}

#[test]
fn what_is_all_seen_is_exact() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.snap.zst");
    let mut run = Command::new(&programs().aggregator);
    let output = run.args(["run", "-o"]).arg(&path).args(["--", "ls"]).output().expect("it runs");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("NOT SEEN"));
    assert!(report(&path, &[]).lines().next().expect("a line").contains(": exact; "));
    assert!(report(&path, &["--format", "csv"]).starts_with("size,count,"));
}
