//! The ELF programs of /usr/bin, each with `--version`. Some programs also live long enough for an
//! attach: they wait for input, or answer line by line.

use super::{Kind, Life, Lines, Subject, listed, words};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

const FOLDER: &str = "/usr/bin";

/// Programs left out, with the reason for each.
pub fn exceptions() -> BTreeMap<&'static str, &'static str> {
    listed(include_str!("../../exceptions.txt"))
}

/// All programs.
pub fn all() -> Result<Vec<Subject>> {
    let exceptions = exceptions();
    let names = elf_programs(Path::new(FOLDER))?;
    let names = names.into_iter().filter(|name| !exceptions.contains_key(name.as_str()));
    Ok(names.map(versioned).chain(waiting()).chain(answering()).collect())
}

fn versioned(name: String) -> Subject {
    Subject {
        kind: Kind::Program,
        program: Path::new(FOLDER).join(&name),
        argv: vec![format!("{FOLDER}/{name}"), "--version".to_owned()],
        name,
        packages: &[],
        wheels: &[],
        files: Vec::new(),
        prepare: None,
        life: Life::Short,
    }
}

/// Installed programs that wait for input.
fn waiting() -> impl Iterator<Item = Subject> {
    let names = include_str!("../../waiting.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let programs = names.map(|name| (name, Path::new(FOLDER).join(name))).filter(|(_, program)| program.is_file());
    programs.map(|(name, program)| Subject {
        kind: Kind::Program,
        name: format!("{name} (waiting)"),
        packages: &[],
        wheels: &[],
        argv: vec![program.display().to_string()],
        program,
        files: Vec::new(),
        prepare: None,
        life: Life::Waits,
    })
}

/// Names of the ELF files in `folder`, a name for each file. Of several links to a file, the link
/// with the file's own name is chosen, else the first.
fn elf_programs(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    for name in names {
        let path = folder.join(&name);
        let (Ok(file), true) = (fs::canonicalize(&path), is_elf(&path)) else { continue };
        let is_own_name = file.parent() == Some(folder) && file.file_name().is_some_and(|own| *own == *name);
        if is_own_name || !files.contains_key(&file) {
            files.insert(file, name);
        }
    }
    let mut names: Vec<String> = files.into_values().collect();
    names.sort_unstable();
    Ok(names)
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *b"\x7fELF"
}

/// A program that answers line by line.
struct Answering {
    name: &'static str,
    package: &'static [&'static str],
    argv: &'static [&'static str],
    question: &'static str,
}

const ANSWERING: [Answering; 8] = [
    Answering { name: "bc", package: &["bc"], argv: &["/usr/bin/bc"], question: "2^64\n" },
    Answering {
        name: "mawk",
        package: &["mawk"],
        argv: &["/usr/bin/mawk", "-W", "interactive", "{ n[$1] = NR; print length($0), n[$1]; fflush() }"],
        question: "a line\n",
    },
    Answering {
        name: "sed",
        package: &["sed"],
        argv: &["/usr/bin/sed", "-u", "s/[aeiou]/<&>/g"],
        question: "a line\n",
    },
    Answering {
        name: "grep",
        package: &["grep"],
        argv: &["/usr/bin/grep", "-E", "--line-buffered", "^a (line|word)"],
        question: "a line\n",
    },
    Answering { name: "cat", package: &["coreutils"], argv: &["/usr/bin/cat"], question: "a line\n" },
    Answering {
        name: "jq",
        package: &["jq"],
        argv: &["/usr/bin/jq", "--unbuffered", "-c", "[.a[] * 2, (.b | ascii_upcase)]"],
        question: "{\"a\": [1, 2, 3], \"b\": \"word\"}\n",
    },
    Answering {
        name: "bash",
        package: &["bash"],
        argv: &["/usr/bin/bash", "-c", "while read -r x; do y=$(printf %s \"$x\" | tr a-z A-Z); echo \"$y\"; done"],
        question: "a line\n",
    },
    Answering {
        name: "sqlite3",
        package: &["sqlite3"],
        argv: &["/usr/bin/sqlite3", "-interactive", ":memory:"],
        question: "select sum(value) from generate_series(1, 1000);\n",
    },
];

fn answering() -> impl Iterator<Item = Subject> {
    ANSWERING.iter().map(|program| Subject {
        kind: Kind::Program,
        name: format!("{} (answering)", program.name),
        packages: program.package,
        wheels: &[],
        program: Path::new(FOLDER).join(program.name),
        argv: words(program.argv),
        files: Vec::new(),
        prepare: None,
        life: Life::Lines(Lines { greets: false, question: program.question }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn an_elf_file_is_found_once_under_its_own_name_and_scripts_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().canonicalize().expect("a path");
        fs::write(path.join("real"), b"\x7fELF and more").expect("a file");
        fs::write(path.join("script"), b"#!/bin/sh").expect("a file");
        symlink("real", path.join("another")).expect("a link");
        symlink("real", path.join("zlink")).expect("a link");
        assert_eq!(elf_programs(&path).expect("readable"), ["real"]);
    }

    #[test]
    fn every_exception_and_every_explanation_has_a_reason() {
        let lists = [include_str!("../../exceptions.txt"), include_str!("../../explained.txt")];
        let lines = lists.iter().flat_map(|list| list.lines());
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let reason = line.split_once(": ").map(|(_, reason)| reason.len());
            assert!(reason.is_some_and(|length| length > 10), "no reason: {line}");
        }
    }
}
