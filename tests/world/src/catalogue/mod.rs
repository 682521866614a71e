//! Subjects of the laboratory: how each is started, used and ended.

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

/// Kind of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An ELF program of /usr/bin: with `--version`, waiting for input, or answering line by line.
    Program,
    /// A native wheel, imported by a Python program.
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

/// A real program, with its use in the laboratory.
#[derive(Clone)]
pub struct Subject {
    /// Kind of the subject.
    pub kind: Kind,
    /// Name, unique within the kind.
    pub name: String,
    /// Debian packages with the subject.
    pub packages: &'static [&'static str],
    /// Distributions of PyPI imported by the subject.
    pub wheels: &'static [&'static str],
    /// File that must exist for the subject to be tried.
    pub program: PathBuf,
    /// The program and its arguments. `{scratch}` is replaced by the run's folder, `{port}` by the
    /// server's port.
    pub argv: Vec<String>,
    /// Files in the scratch folder before the start.
    pub files: Vec<File>,
    /// A command that prepares the scratch folder; not traced.
    pub prepare: Option<Vec<String>>,
    /// Life of the subject.
    pub life: Life,
}

/// A file of the scratch folder. The text has the same place-holders as the arguments.
#[derive(Clone, Copy)]
pub struct File {
    /// The name in the scratch folder.
    pub name: &'static str,
    /// The content.
    pub text: &'static str,
}

/// Life of a subject, which decides on the subject's use.
#[derive(Clone, Copy)]
pub enum Life {
    /// Ends by itself, without input.
    Short,
    /// Waits for standard input, and ends with the input.
    Waits,
    /// Answers each line of standard input with a line, and ends with the input.
    Lines(Lines),
    /// Listens on a port of loopback until a signal ends it.
    Server(Server),
}

/// Conversation with a program that answers line by line.
#[derive(Clone, Copy)]
pub struct Lines {
    /// Whether the program writes a line when ready.
    pub greets: bool,
    /// A question, with its line end.
    pub question: &'static str,
}

/// Use of a server.
#[derive(Clone, Copy)]
pub struct Server {
    /// Runs a short load on the port. Returns the server's answers.
    pub load: fn(u16) -> io::Result<String>,
    /// Usual signal to end the server.
    pub signal: i32,
    /// Process to attach to.
    pub works: Works,
    /// Words on standard error when the server is ready. A server may turn away an earlier client
    /// and report each attempt, a varying number of times.
    pub ready: Option<&'static str>,
}

/// Working process of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Works {
    /// The started process itself.
    Itself,
    /// The first child of the started process.
    FirstChild,
    /// Processes started for each connection: attached to with `--follow`.
    NewChildren,
}

impl Subject {
    /// Name of the subject on the command line: `server:redis`.
    pub fn id(&self) -> String {
        format!("{}:{}", self.kind, self.name)
    }

    /// Whether the subject is installed.
    pub fn is_installed(&self) -> bool {
        self.program.is_file()
    }
}

/// The laboratory's own Python.
pub struct Python<'a> {
    /// The virtual environment.
    pub venv: &'a Path,
}

impl Python<'_> {
    /// Path of the interpreter.
    pub fn program(&self) -> String {
        self.venv.join("bin/python").display().to_string()
    }
}

/// All subjects, kind by kind.
pub fn all(venv: &Path) -> Result<Vec<Subject>> {
    let python = Python { venv };
    let mut subjects = programs::all()?;
    subjects.extend(wheels::all(&python));
    subjects.extend(servers::all(&python));
    subjects.extend(languages::all());
    Ok(subjects)
}

/// Parses the lines `NAME: REASON` of a list, without comments.
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
