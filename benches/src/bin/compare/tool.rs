//! The tools that are compared: how each is started, what it leaves, how that becomes a report.

use anyhow::{Context, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// None: the program alone.
    Base,
    /// Ours.
    Heapline,
    /// heaptrack, which interprets its data while the program runs, as its users do.
    Heaptrack,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tool::Base => "base",
            Tool::Heapline => "heapline",
            Tool::Heaptrack => "heaptrack",
        })
    }
}

impl Tool {
    /// In the order in which a round runs them.
    pub const ALL: [Tool; 3] = [Tool::Base, Tool::Heapline, Tool::Heaptrack];

    /// A program that the tool needs and that is not there.
    pub fn missing(self, programs: &Path) -> Option<String> {
        let absent = |program: PathBuf| (!program.is_file()).then(|| program.display().to_string());
        match self {
            Tool::Base => None,
            Tool::Heapline => absent(programs.join("aggregator")).or_else(|| absent(programs.join("report"))),
            Tool::Heaptrack => {
                let works = |name: &str| Command::new(name).arg("--version").output().is_ok();
                ["heaptrack", "heaptrack_print"].into_iter().find(|name| !works(name)).map(str::to_owned)
            }
        }
    }

    /// The command that runs `command` under the tool, which writes into `folder`.
    pub fn command(self, command: &[String], programs: &Path, folder: &Path) -> Command {
        let mut traced = match self {
            Tool::Base => return with_arguments(Command::new(&command[0]), &command[1..]),
            Tool::Heapline => {
                let mut run = Command::new(programs.join("aggregator"));
                run.arg("run").arg("-o").arg(folder.join("out.snap.zst")).arg("--");
                run
            }
            Tool::Heaptrack => {
                let mut run = Command::new("heaptrack");
                run.arg("-o").arg(folder.join("out.heaptrack"));
                run
            }
        };
        traced.args(command);
        traced
    }

    /// The file that the tool has left in `folder`.
    pub fn product(self, folder: &Path) -> Result<Option<PathBuf>> {
        if self == Tool::Base {
            return Ok(None);
        }
        let entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
        let found = entries
            .iter()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("out.")));
        Ok(Some(found.with_context(|| format!("{self} has left no file"))?))
    }

    /// Makes a report that a person can read of the file, with cold caches; returns how long that took.
    pub fn report(self, file: &Path, programs: &Path, cache: &Path) -> Result<Duration> {
        let mut report = match self {
            Tool::Base => return Ok(Duration::ZERO),
            Tool::Heapline => with_arguments(Command::new(programs.join("report")), &[]),
            Tool::Heaptrack => with_arguments(Command::new("heaptrack_print"), &["-f".to_owned()]),
        };
        report.arg(file).env("XDG_CACHE_HOME", cache).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        let status = report.status().with_context(|| format!("the report of {self}"))?;
        anyhow::ensure!(status.success(), "the report of {self} ends with {status}");
        Ok(start.elapsed())
    }
}

fn with_arguments(mut command: Command, arguments: &[String]) -> Command {
    command.args(arguments);
    command
}
