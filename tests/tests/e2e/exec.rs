//! A process stays traced over exec. FILE holds the last image's snapshot; FILE.exec1 and so on
//! hold the snapshots of the earlier images.

use crate::support::trace::{read_snapshot, report_on};
use crate::support::{Outcome, Trace, victim};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("the script is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("and made executable");
    path
}

fn image(outcome: &Outcome, n: u32) -> PathBuf {
    let mut name = outcome.snapshot_path().into_os_string();
    name.push(format!(".exec{n}"));
    name.into()
}

/// Checks that the last image is `counts.c`, with exactly the numbers of `counts.c`.
fn assert_counts(outcome: &Outcome) {
    let said = outcome.printed();
    let report = outcome.report(&[]);
    report.assert_exact();
    let native = report.native();
    assert_eq!((native.allocs, native.frees, native.allocated_bytes), (said["allocs"], said["frees"], said["bytes"]));
    assert_eq!((native.blocks, native.current), (said["live_blocks"], said["live_bytes"]));
    assert!(outcome.snapshot().meta.executable.ends_with("/counts"), "{}", outcome.snapshot().meta.executable);
}

#[test]
fn a_start_script_gives_the_programs_snapshot() {
    let counts = victim::build("counts.c", &["-O0"]);
    let scripts = tempfile::TempDir::new().expect("a folder");
    let start = script(scripts.path(), "start.sh", &format!("#!/bin/sh\nX=1\nexec {}\n", counts.display()));
    let outcome = Trace::of(&start).run().expect_code(0);
    assert_counts(&outcome);
    let shell = read_snapshot(&image(&outcome, 1));
    let executable = Path::new("/bin/sh").canonicalize().expect("a shell");
    assert_eq!(Path::new(&shell.meta.executable).canonicalize().expect("it exists"), executable);
    assert_eq!(shell.meta.pid, outcome.snapshot().meta.pid, "the same process");
    assert!(!image(&outcome, 2).exists());
    assert!(report_on(&image(&outcome, 1), &[]).native().allocs > 0, "the shell allocated");
}

#[test]
fn each_image_of_a_chain_has_its_own_file() {
    let counts = victim::build("counts.c", &["-O0"]);
    let scripts = tempfile::TempDir::new().expect("a folder");
    let inner = script(scripts.path(), "inner.sh", &format!("#!/bin/sh\nexec {}\n", counts.display()));
    let outer = script(scripts.path(), "outer.sh", &format!("#!/bin/sh\nexec env A=b {}\n", inner.display()));
    let outcome = Trace::of(&outer).run().expect_code(0);
    assert_counts(&outcome);
    let images: Vec<_> = (1..=4)
        .map(|n| image(&outcome, n))
        .take_while(|path| path.exists())
        .map(|path| read_snapshot(&path).meta.executable)
        .map(|exe| exe.rsplit('/').next().unwrap_or_default().to_owned())
        .collect();
    let shell = Path::new("/bin/sh").canonicalize().expect("a shell");
    let shell = shell.file_name().expect("a name").to_str().expect("UTF-8");
    assert_eq!(images, [shell, "env", shell]);
}

#[test]
fn an_exec_that_fails_changes_nothing() {
    let counts = victim::build("counts.c", &["-O0"]);
    let scripts = tempfile::TempDir::new().expect("a folder");
    // env tries the folders of PATH in order: each try in a wrong folder is a failed exec.
    let path = format!("/nonexistent/a:/nonexistent/b:{}", counts.parent().expect("a folder").display());
    let start = script(scripts.path(), "start.sh", &format!("#!/bin/sh\nPATH={path}\nexec counts\n"));
    let outcome = Trace::of(&start).run().expect_code(0);
    assert_counts(&outcome);
    assert!(image(&outcome, 1).exists() && !image(&outcome, 2).exists());
}

#[test]
fn a_thread_that_execs_ends_the_other_threads_records() {
    let outcome = Trace::of("python3")
        .args(["-c", "import threading,os,time\nfor _ in range(3): threading.Thread(target=time.sleep,args=(60,),daemon=True).start()\nt=threading.Thread(target=lambda: os.execv(os.environ['V'],['counts']))\nt.start()\nt.join()"])
        .env("V", victim::build("counts.c", &["-O0"]))
        .run()
        .expect_code(0);
    assert_counts(&outcome);
}
