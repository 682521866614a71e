//! Runs `report` on the snapshot of a compiled program.

use super::snapshot::{Builder, return_addresses};
use super::{compile, source};
use heapline_shared_format::snapshot::Domain;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::{TempDir, tempdir};

/// A compiled program, and a snapshot of a possible run of the program.
pub struct Scene {
    pub dir: TempDir,
    pub program: PathBuf,
    pub snapshot: PathBuf,
    /// Path of the program's source.
    pub source: String,
}

/// Makes a scene with these live blocks:
///
/// | Blocks | Bytes each | Layer | Place | Thread |
/// | --- | --- | --- | --- | --- |
/// | 10 | 1000 | native | innermost of three inlined functions, call on line 9 | 0 |
/// | 2 | 50 | native | innermost of three inlined functions, call on line 9 | 1 |
/// | 1 | 7 | native | innermost of three inlined functions, call on line 10 | 0 |
/// | 1 | 4096 | mmap | main | 0 |
pub fn scene() -> Scene {
    let dir = tempdir().unwrap();
    let program = compile(dir.path(), "inlines.c", &["-g", "-O2", "-fno-optimize-sibling-calls"]);
    let mut builder = Builder::new(Some(&program));
    fill(&mut builder, &program, 10);
    let snapshot = builder.save(dir.path(), "new.snap.zst");
    let source = source("inlines.c").to_str().unwrap().to_string();
    Scene { dir, program, snapshot, source }
}

pub fn fill(builder: &mut Builder, program: &Path, big: u64) {
    let main = return_addresses(program, "main", 22)[0];
    let inner = return_addresses(program, "innermost", 5);
    assert_eq!(inner.len(), 2, "innermost is inlined twice");
    let first = builder.stack(&[main, inner[0]]);
    let second = builder.stack(&[main, inner[1]]);
    let alone = builder.stack(&[main]);
    builder.blocks(Domain::Native, first, 0, 1000, big);
    builder.blocks(Domain::Native, first, 1, 50, 2);
    builder.blocks(Domain::Native, second, 0, 7, 1);
    builder.blocks(Domain::Mmap, alone, 0, 4096, 1);
}

pub fn report(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_report"));
    // Without a home, nothing is kept outside of the tests' own folders.
    command.args(arguments).env_remove("XDG_CACHE_HOME").env_remove("HOME").output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

impl Scene {
    pub fn path(&self) -> &str {
        self.snapshot.to_str().unwrap()
    }

    /// Returns the report from standard output. Standard error must be empty.
    pub fn says(&self, arguments: &[&str]) -> String {
        let output = report(&[&[self.path()], arguments].concat());
        assert_eq!(stderr(&output), "");
        assert!(output.status.success());
        stdout(&output)
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[arguments, &["--format", "json"]].concat())).unwrap()
    }

    /// Returns size and count of each row.
    pub fn figures(&self, arguments: &[&str]) -> Vec<(u64, u64)> {
        let json = self.json(arguments);
        let row = |row: &Value| (row["size"].as_u64().unwrap(), row["count"].as_u64().unwrap());
        json["stats"].as_array().unwrap().iter().map(row).collect()
    }

    /// Returns the file name (without folder) and the line of each frame of a row.
    pub fn places(row: &Value) -> Vec<(String, u64)> {
        let place = |frame: &Value| {
            let file = frame["filename"].as_str().unwrap().rsplit('/').next().unwrap();
            (file.to_string(), frame["lineno"].as_u64().unwrap())
        };
        row["traceback"].as_array().unwrap().iter().map(place).collect()
    }
}
