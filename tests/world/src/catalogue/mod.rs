//! What the laboratory tries: each subject with how it is started, used and ended.

mod languages;
mod programs;
mod servers;
mod wheels;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use programs::exceptions;

/// What a subject is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An ELF program of /usr/bin: with `--version`, waiting for input, or answering line by line.
    Program,
    /// A native wheel that a Python program imports.
    Wheel,
    /// A server under a short load.
    Server,
    /// A compiler or an interpreter.
    Language,
}

impl Kind {
    /// All kinds, in the order of the table.
    pub const ALL: [Kind; 4] = [Kind::Program, Kind::Wheel, Kind::Server, Kind::Language];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Kind::Program => "program",
            Kind::Wheel => "wheel",
            Kind::Server => "server",
            Kind::Language => "language",
        })
    }
}

/// One program of the world, and how it is used.
#[derive(Clone)]
pub struct Subject {
    /// What the subject is.
    pub kind: Kind,
    /// The name, unique within the kind.
    pub name: String,
    /// The Debian packages that have the subject.
    pub packages: &'static [&'static str],
    /// The distribution of PyPI that the subject imports.
    pub wheels: &'static [&'static str],
    /// The file that must be there for the subject to be tried.
    pub program: PathBuf,
    /// The program and its arguments. `{scratch}` is the run's folder, `{port}` the server's port.
    pub argv: Vec<String>,
    /// Files that the scratch folder has before the start.
    pub files: Vec<File>,
    /// A command that prepares the scratch folder; not traced.
    pub prepare: Option<Vec<String>>,
    /// How the subject lives.
    pub life: Life,
}

/// A file of the scratch folder. Its text has the same place-holders as the arguments.
#[derive(Clone, Copy)]
pub struct File {
    /// The name in the scratch folder.
    pub name: &'static str,
    /// The content.
    pub text: &'static str,
}

/// How a subject lives, and so how it is used.
#[derive(Clone, Copy)]
pub enum Life {
    /// Ends by itself, without input.
    Short,
    /// Waits for its standard input, and ends with it.
    Waits,
    /// Answers each line of its standard input with one line, and ends with its input.
    Lines(Lines),
    /// Listens on a port of loopback until a signal ends it.
    Server(Server),
}

/// How a program that answers line by line is talked to.
#[derive(Clone, Copy)]
pub struct Lines {
    /// Whether the program writes a line when it is ready.
    pub greets: bool,
    /// One question, with its line's end.
    pub question: &'static str,
}

/// How a server is used.
#[derive(Clone, Copy)]
pub struct Server {
    /// A short load on the port. Returns what the server answered.
    pub load: fn(u16) -> io::Result<String>,
    /// The signal that ends the server as its users end it.
    pub signal: i32,
    /// Which process an attach takes.
    pub works: Works,
    /// What the server writes to standard error when it is ready. A client that comes before is
    /// sent away, and the server may write that too: now once, now ten times.
    pub ready: Option<&'static str>,
}

/// Which process of a server does the work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Works {
    /// The process that was started.
    Itself,
    /// A process that the server started: its first child.
    FirstChild,
    /// Processes that are started for each connection: attached to with `--follow`.
    NewChildren,
}

impl Subject {
    /// The name by which a subject is asked for and chosen: `server:redis`.
    pub fn id(&self) -> String {
        format!("{}:{}", self.kind, self.name)
    }

    /// Whether the subject is installed.
    pub fn is_installed(&self) -> bool {
        self.program.is_file()
    }
}

/// Where the laboratory's own Python is.
pub struct Python<'a> {
    /// The virtual environment.
    pub venv: &'a Path,
}

impl Python<'_> {
    /// The interpreter.
    pub fn program(&self) -> String {
        self.venv.join("bin/python").display().to_string()
    }
}

/// Every subject, kind by kind.
pub fn all(venv: &Path) -> Result<Vec<Subject>> {
    let python = Python { venv };
    let mut subjects = programs::all()?;
    subjects.extend(wheels::all(&python));
    subjects.extend(servers::all(&python));
    subjects.extend(languages::all());
    Ok(subjects)
}

/// The lines `NAME: REASON` of a list, without its comments.
pub fn listed(list: &'static str) -> BTreeMap<&'static str, &'static str> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(": ")).collect()
}

/// Owned copies of the words of a command.
fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn there_are_as_many_subjects_as_the_laboratory_promises_and_each_has_its_own_name() {
        let subjects = all(Path::new("/venv")).expect("/usr/bin can be read");
        let count = |kind| subjects.iter().filter(|subject| subject.kind == kind).count();
        assert!(count(Kind::Program) > 100);
        assert!(count(Kind::Wheel) >= 44);
        assert!(count(Kind::Server) >= 10);
        assert!(count(Kind::Language) >= 10);
        let names: BTreeSet<String> = subjects.iter().map(Subject::id).collect();
        assert_eq!(names.len(), subjects.len());
    }
}
