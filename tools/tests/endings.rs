//! Tests of the whole program: exit status and messages.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use support::scene::{report, scene, stderr, stdout};
use tempfile::tempdir;

/// Checks that the report fails with this status and a single line with all of `words`.
fn fails(arguments: &[&str], status: i32, words: &[&str]) {
    let output = report(arguments);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    assert!(error.starts_with("report: "), "{error}");
    words.iter().for_each(|word| assert!(error.contains(word), "{arguments:?}: {word:?} is not in {error}"));
    assert_eq!(stdout(&output), "");
}

#[test]
fn bad_input_is_one_line_and_status_1() {
    let scene = scene();
    let dir = scene.dir.path();
    let bytes = fs::read(&scene.snapshot).unwrap();
    let content = zstd::decode_all(&bytes[..]).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    };
    let packed = |content: &[u8]| zstd::encode_all(content, 3).unwrap();
    let mut newer = content.clone();
    newer[8] = 2;
    let mut damaged = content.clone();
    let live = content.windows(4).position(|window| window == b"LIVE").unwrap();
    damaged[live + 17] ^= 1;
    for (path, words) in [
        (dir.join("missing").to_str().unwrap().to_string(), &["cannot open", "missing"][..]),
        (file("empty", b""), &["truncated in the head"]),
        (file("truncated", &bytes[..bytes.len() / 2]), &["truncated in"]),
        (file("cut", &packed(&content[..live + 10])), &["truncated in section LIVE"]),
        (file("corrupt", &packed(&damaged)), &["checksum of section LIVE"]),
        (file("foreign", b"#!/bin/sh\n"), &["no zstd file"]),
        (file("archive", &packed(b"a tar file, perhaps")), &["not a Heapline snapshot"]),
        (file("newer", &packed(&newer)), &["version 2", "version 1"]),
        (dir.to_str().unwrap().to_string(), &["directory"]),
    ] {
        fails(&[&path], 1, words);
        fails(&[scene.path(), "--diff", &path], 1, words);
    }
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    let scene = scene();
    let path = scene.path();
    fails(&[], 2, &["<SNAP>"]);
    fails(&[path, "--by", "colour"], 2, &["colour", "lineno"]);
    fails(&[path, "--by", "traceback", "--cumulative"], 2, &["--cumulative"]);
    fails(&[path, "--by", "size", "--at", "peak"], 2, &["live"]);
    fails(&[path, "--by", "size", "--at", "total"], 2, &["live"]);
    fails(&[path, "--format", "flamegraph"], 2, &["flamegraph", "folded"]);
    fails(&[path, "--limit", "ten"], 2, &["ten"]);
    fails(&[path, "--domain", "heap"], 2, &["heap", "native"]);
    fails(&[path, "--at", "noon"], 2, &["noon", "peak"]);
}

#[test]
fn an_output_file_is_replaced_as_a_whole_or_not_at_all() {
    let scene = scene();
    let out = scene.dir.path().join("report.csv");
    fs::write(&out, "old").unwrap();
    let out = out.to_str().unwrap();
    fails(&[scene.dir.path().join("missing").to_str().unwrap(), "-o", out], 1, &["cannot open"]);
    assert_eq!(fs::read_to_string(out).unwrap(), "old");
    assert_eq!(scene.says(&["--format", "csv", "-o", out]), "");
    assert!(fs::read_to_string(out).unwrap().starts_with("size,count,"));
    let left: Vec<_> = fs::read_dir(scene.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "no temporary file stays: {left:?}");
    fails(&[scene.path(), "-o", "/nowhere/report.txt"], 1, &["cannot write /nowhere/report.txt"]);
    fails(&[scene.path(), "-o", "/dev/full"], 1, &["cannot write /dev/full", "No space left"]);
}

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let scene = scene();
    let mut child = Command::new(env!("CARGO_BIN_EXE_report"))
        .args([scene.path(), "--format", "json", "--by", "traceback"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(stderr(&output), "");
    assert!(output.status.success());
}

#[test]
fn help_and_version_are_answers() {
    let help = report(&["--help"]);
    assert!(help.status.success());
    assert!(stdout(&help).contains("--cumulative"));
    let version = report(&["--version"]);
    assert_eq!(stdout(&version), format!("report {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_launcher_finds_what_was_built_through_links() {
    let dir = tempdir().unwrap();
    let launcher = dir.path().join("checkout/tools/report");
    fs::create_dir_all(launcher.parent().unwrap()).unwrap();
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/report"), &launcher).unwrap();
    let link = dir.path().join("report-link");
    std::os::unix::fs::symlink("checkout/tools/report", &link).unwrap();
    let run = |target: Option<&Path>| {
        let mut command = Command::new(&link);
        command.arg("--version").env_remove("CARGO_TARGET_DIR").current_dir("/");
        target.map(|target| command.env("CARGO_TARGET_DIR", target));
        command.output().unwrap()
    };
    let missing = run(None);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("cargo build --release"), "{}", stderr(&missing));
    assert_eq!(stderr(&missing).lines().count(), 1);
    for target in [dir.path().join("elsewhere"), dir.path().join("checkout/target")] {
        let built = target.join("release/report");
        fs::create_dir_all(built.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_report"), &built).unwrap();
        let output = run(target.ends_with("elsewhere").then_some(&target));
        assert!(stdout(&output).starts_with("report "), "{}", stderr(&output));
    }
}
