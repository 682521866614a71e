//! The laboratory: compares real programs alone and under Heapline.
//!
//! | Exit status | Meaning |
//! | --- | --- |
//! | 0 | all is well |
//! | 1 | harm or wrong numbers, or under CI a subject that is not installed |
//! | 2 | the laboratory failed |

mod catalogue;
mod choose;
mod clients;
mod compare;
mod laboratory;
mod oracle;
mod process;
mod setup;
mod surroundings;
mod table;
mod trace;
mod verdict;

use anyhow::{Context, Result, bail};
use catalogue::Subject;
use clap::Parser;
use laboratory::{Laboratory, Mode, Programs};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use surroundings::Surroundings;
use verdict::{Plan, Verdict};

/// Real programs alone and under Heapline: what they do, compared, and what their traces are worth
#[derive(Parser)]
#[command(name = "heapline-world")]
struct Arguments {
    /// Subjects: a kind (program, wheel, server, language), or KIND:NAME; all without any
    subjects: Vec<String>,
    /// Only the tenth that this commit is tested with; HEAD is the checkout's own
    #[arg(long, value_name = "COMMIT")]
    tenth: Option<String>,
    /// Install what the chosen subjects need first (apt-get, pip)
    #[arg(long)]
    setup: bool,
    /// List the chosen subjects, and run none
    #[arg(long)]
    list: bool,
    /// Ways in which Heapline is brought to the programs
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["run", "sample", "attach"])]
    modes: Vec<Mode>,
    /// Compare the counts of exact runs with valgrind's
    #[arg(long)]
    oracle: bool,
    /// Where aggregator and report are [default: beside this program]
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Write the table here
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write all results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Read results from these files instead of running subjects, and write one table of all; of a
    /// subject that is in several files, the last result counts
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    from: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("world: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the laboratory. Returns whether all is well.
fn run(arguments: &Arguments) -> Result<bool> {
    let verdicts = match arguments.from.as_slice() {
        [] => {
            let venv = checkout().join("target/world/venv");
            let subjects = chosen(arguments, &venv)?;
            if arguments.list {
                subjects.iter().for_each(|subject| println!("{}", subject.id()));
                return Ok(true);
            }
            if arguments.setup {
                setup::install(&subjects, &venv, arguments.oracle)?;
            }
            // Paths may depend on packages installed just now, so the subjects are chosen again.
            try_all(arguments, &chosen(arguments, &venv)?)?
        }
        files => earlier(files)?,
    };
    if let Some(file) = &arguments.markdown {
        fs::write(file, table::markdown(&verdicts, &system()))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &arguments.json {
        fs::write(file, serde_json::to_vec_pretty(&verdicts)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(conclude(&verdicts))
}

fn earlier(files: &[PathBuf]) -> Result<Vec<Verdict>> {
    let mut verdicts = BTreeMap::new();
    for file in files {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let read: Vec<Verdict> =
            serde_json::from_slice(&text).with_context(|| format!("{} has no results", file.display()))?;
        verdicts.extend(read.into_iter().map(|verdict| ((verdict.kind, verdict.name.clone()), verdict)));
    }
    Ok(verdicts.into_values().collect())
}

fn try_all(arguments: &Arguments, subjects: &[Subject]) -> Result<Vec<Verdict>> {
    let laboratory = Laboratory { programs: programs(arguments)?, surroundings: Surroundings::close_off()? };
    let plan = Plan { modes: arguments.modes.clone(), oracle: arguments.oracle };
    let verdicts = subjects.iter().map(|subject| {
        let verdict = verdict::judge(&laboratory, subject, &plan);
        println!("{}", table::line(&verdict));
        verdict
    });
    Ok(verdicts.collect())
}

fn programs(arguments: &Arguments) -> Result<Programs> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.to_owned());
    let folder = arguments.programs.clone().or_else(beside).context("the programs' folder is not known")?;
    let folder = fs::canonicalize(&folder).with_context(|| format!("no folder {}", folder.display()))?;
    let programs = Programs { aggregator: folder.join("aggregator"), report: folder.join("report") };
    for program in [&programs.aggregator, &programs.report] {
        if !program.is_file() {
            bail!("{} is missing: cargo build --release makes it", program.display());
        }
    }
    Ok(programs)
}

fn chosen(arguments: &Arguments, venv: &Path) -> Result<Vec<Subject>> {
    let mut subjects = catalogue::all(venv)?;
    if !arguments.subjects.is_empty() {
        let is_meant = |word: &str, subject: &Subject| word == subject.kind.to_string() || word == subject.id();
        if let Some(word) = arguments.subjects.iter().find(|word| !subjects.iter().any(|s| is_meant(word, s))) {
            bail!("no subject is called {word}: --list shows all");
        }
        subjects.retain(|subject| arguments.subjects.iter().any(|word| is_meant(word, subject)));
    }
    match &arguments.tenth {
        Some(commit) => Ok(choose::tenth(subjects, &full_hash(commit)?)),
        None => Ok(subjects),
    }
}

/// Returns the whole hash of a commit, from git.
fn full_hash(commit: &str) -> Result<String> {
    let mut git = Command::new("git");
    let asked = git.arg("-C").arg(checkout()).args(["rev-parse", "--verify", &format!("{commit}^{{commit}}")]);
    let output = asked.output().context("git does not start")?;
    if !output.status.success() {
        bail!("git knows no commit {commit}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Returns the name of the system, as its users know it.
fn system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or("an unknown system", |name| name.trim_matches('"')).to_owned()
}

fn checkout() -> PathBuf {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    fs::canonicalize(root).unwrap_or_else(|_| root.to_owned())
}

/// Prints the summary. Returns whether all is well.
fn conclude(verdicts: &[Verdict]) -> bool {
    let unusable = verdicts.iter().filter(|verdict| verdict.unusable.is_some()).count();
    let bad: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.is_bad()).collect();
    println!("{} subjects, {unusable} not tried, {} with harm or wrong numbers", verdicts.len(), bad.len());
    for verdict in &bad {
        println!("  {}", table::line(verdict));
    }
    // CI must run all subjects, so a missing subject is a hole in the test.
    let is_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let absent =
        verdicts.iter().filter(|verdict| verdict.unusable.as_ref().is_some_and(|why| why.contains("not installed")));
    let holes = absent.map(|verdict| verdict.name.as_str()).collect::<Vec<_>>();
    if is_ci && !holes.is_empty() {
        println!("not installed, which CI does not allow: {}", holes.join(", "));
        return false;
    }
    bad.is_empty()
}
