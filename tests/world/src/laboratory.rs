//! Runs a subject alone, or under Heapline in one of the modes.

use crate::catalogue::{Kind, Life, Lines, Server, Subject, Works};
use crate::process::{self, Launch, Running, children_of, shell_status, wait_until};
use crate::surroundings::{Surroundings, environment, free_port};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Way of using Heapline on a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `aggregator run`
    Run,
    /// `aggregator run --sample 64K`
    Sample,
    /// `aggregator --attach`, in the middle of the program's life
    Attach,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Mode::Run => "run",
            Mode::Sample => "run --sample 64K",
            Mode::Attach => "attach",
        })
    }
}

/// Visible results of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Behaviour {
    /// Exit status as a shell reports it. `None`: the program did not end, and was killed.
    pub status: Option<i32>,
    /// Standard output, up to a bound.
    pub stdout: Vec<u8>,
    /// Standard error without Heapline's own lines, up to a bound.
    pub stderr: Vec<u8>,
    /// Answers of a server to its client.
    pub dialogue: String,
    /// A failure: no answer, or no connection.
    pub trouble: Option<String>,
}

impl Behaviour {
    /// Describes the end of the run.
    pub fn end(&self) -> String {
        self.status.map_or_else(|| "no end".to_owned(), |status| format!("exit status {status}"))
    }
}

/// Messages and snapshots of Heapline in a run.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    /// Heapline's own lines, without "heapline: ".
    pub said: Vec<String>,
    /// Snapshots of all processes.
    pub snapshots: Vec<PathBuf>,
    /// Whether Heapline did not start to trace at all.
    pub refused: bool,
}

/// The programs under test.
pub struct Programs {
    /// `aggregator`
    pub aggregator: PathBuf,
    /// `report`
    pub report: PathBuf,
}

/// A place to run subjects.
pub struct Laboratory {
    /// Folders and network of the runs.
    pub surroundings: Surroundings,
    /// The programs under test.
    pub programs: Programs,
}

/// Resources of a run of a subject: folder, port, and latest end.
struct Stage {
    scratch: PathBuf,
    port: u16,
    deadline: Instant,
}

impl Laboratory {
    /// Runs a subject without Heapline, below `wrapper` (a program with arguments, or nothing).
    pub fn alone(&self, subject: &Subject, wrapper: &[String], extra: &[(&str, &str)]) -> Result<Behaviour> {
        let stage = self.stage(subject, 1)?;
        self.live(subject, &stage, wrapper, extra, None)
    }

    /// Runs a subject under Heapline. `None`: the subject does not live long enough for the mode.
    pub fn traced(&self, subject: &Subject, mode: Mode, extra: &[(&str, &str)]) -> Result<Option<(Behaviour, Traces)>> {
        let folder = self.surroundings.snapshots()?;
        let aggregator = self.programs.aggregator.display().to_string();
        let output = format!("{}/", folder.display());
        let stage = self.stage(subject, 4)?;
        let (mut behaviour, mut traces) = match mode {
            Mode::Attach if matches!(subject.life, Life::Short) => return Ok(None),
            Mode::Attach => {
                let mut attachment = Attachment::new(&aggregator, &output, subject);
                let behaviour = self.live(subject, &stage, &[], extra, Some(&mut attachment))?;
                (behaviour, attachment.traces)
            }
            Mode::Run | Mode::Sample => {
                let sample: &[&str] = if mode == Mode::Sample { &["--sample", "64K"] } else { &[] };
                let wrapper = [&[aggregator.as_str(), "run"], sample, &["-o", &output, "--"]].concat();
                let wrapper: Vec<String> = wrapper.into_iter().map(str::to_owned).collect();
                (self.live(subject, &stage, &wrapper, extra, None)?, Traces::default())
            }
        };
        if mode != Mode::Attach {
            (behaviour.stderr, traces.said) = without_own_lines(&behaviour.stderr);
        }
        traces.snapshots = snapshots_in(&folder);
        // The program itself may exit with 125, but then a snapshot exists.
        traces.refused |= behaviour.status == Some(125) && traces.snapshots.is_empty();
        Ok(Some((behaviour, traces)))
    }

    fn stage(&self, subject: &Subject, patience: u32) -> Result<Stage> {
        let scratch = self.surroundings.scratch()?;
        let limit = match (subject.kind, subject.life) {
            (Kind::Program, Life::Short | Life::Waits) => Duration::from_secs(15),
            _ => Duration::from_secs(120),
        };
        let mut stage = Stage { scratch, port: free_port()?, deadline: Instant::now() };
        for file in &subject.files {
            fs::write(stage.scratch.join(file.name), stage.fill(file.text))?;
        }
        if let Some(prepare) = &subject.prepare {
            let argv: Vec<String> = prepare.iter().map(|word| stage.fill(word)).collect();
            let output = output(&argv, &stage.scratch, Duration::from_secs(120))?;
            if output.status != Some(0) {
                bail!("cannot be prepared: {}", last_line(&output.stderr));
            }
        }
        stage.deadline = Instant::now() + limit * patience;
        Ok(stage)
    }

    fn live(
        &self,
        subject: &Subject,
        stage: &Stage,
        wrapper: &[String],
        extra: &[(&str, &str)],
        attachment: Option<&mut Attachment>,
    ) -> Result<Behaviour> {
        let filled = subject.argv.iter().map(|word| stage.fill(word));
        let argv: Vec<String> = wrapper.iter().cloned().chain(filled).collect();
        let mut environment = environment(&stage.scratch);
        environment.extend(extra.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
        let launch = Launch { argv: &argv, environment: &environment, folder: &stage.scratch };
        let mut process = Running::start(&launch).with_context(|| format!("{} does not start", argv[0]))?;
        let mut behaviour = Behaviour::default();
        let spoken = match subject.life {
            Life::Short => Ok(()),
            Life::Waits => wait_for_input(&mut process, attachment),
            Life::Lines(lines) => converse_by_lines(&mut process, lines, stage.deadline, attachment),
            Life::Server(server) => use_server(&mut process, server, stage, attachment, &mut behaviour.dialogue),
        };
        behaviour.trouble = spoken.err().map(|error| format!("{error:#}"));
        process.end_input();
        behaviour.status = process.wait(stage.deadline)?.map(shell_status);
        process::end_all_children();
        behaviour.stdout = process.stdout.finish();
        behaviour.stderr = process.stderr.finish();
        Ok(behaviour)
    }
}

impl Stage {
    fn fill(&self, text: &str) -> String {
        let scratch = self.scratch.display().to_string();
        text.replace("{scratch}", &scratch).replace("{port}", &self.port.to_string())
    }
}

/// Writes a line of input, after a pause and an attach.
fn wait_for_input(process: &mut Running, attachment: Option<&mut Attachment>) -> Result<()> {
    // The pause needs no exact length: by then most programs wait for input.
    thread::sleep(Duration::from_millis(200));
    if let Some(attachment) = attachment {
        attachment.begin(process.pid())?;
        attachment.finish()?;
    }
    process.say("some words 1 2\n");
    Ok(())
}

/// Asks three questions. An attach begins before the second and ends before the third.
fn converse_by_lines(
    process: &mut Running,
    lines: Lines,
    deadline: Instant,
    mut attachment: Option<&mut Attachment>,
) -> Result<()> {
    let mut heard = usize::from(lines.greets);
    if !process.stdout.wait_for_lines(heard, deadline) {
        bail!("it never says that it is ready");
    }
    for turn in 0..TURNS {
        attend(&mut attachment, turn, process.pid())?;
        process.say(lines.question);
        heard += 1;
        if !process.stdout.wait_for_lines(heard, deadline) {
            bail!("no answer to question {}", turn + 1);
        }
    }
    Ok(())
}

/// Runs three loads. An attach begins before the second and ends before the third.
fn use_server(
    process: &mut Running,
    server: Server,
    stage: &Stage,
    mut attachment: Option<&mut Attachment>,
    dialogue: &mut String,
) -> Result<()> {
    if let Some(words) = server.ready
        && !process.stderr.wait_for_words(words, stage.deadline)
    {
        bail!("it never says {words:?}");
    }
    let mut has_ended = false;
    let is_open = wait_until(stage.deadline, || {
        has_ended = !matches!(process.wait(Instant::now()), Ok(None));
        has_ended || TcpStream::connect(("127.0.0.1", stage.port)).is_ok()
    });
    if !is_open || has_ended {
        bail!("it never listens");
    }
    for turn in 0..TURNS {
        attend(&mut attachment, turn, process.pid())?;
        let answers = (server.load)(stage.port).with_context(|| format!("load {} failed", turn + 1))?;
        *dialogue += &answers;
    }
    process.signal(server.signal);
    Ok(())
}

/// Number of questions, or loads, in a run.
const TURNS: usize = 3;

fn attend(attachment: &mut Option<&mut Attachment>, turn: usize, pid: u32) -> Result<()> {
    match (attachment, turn) {
        (Some(attachment), 1) => attachment.begin(pid),
        (Some(attachment), 2) => attachment.finish(),
        _ => Ok(()),
    }
}

/// An aggregator attached for a second.
struct Attachment {
    argv: Vec<String>,
    works: Works,
    aggregator: Option<Running>,
    traces: Traces,
}

impl Attachment {
    fn new(aggregator: &str, output: &str, subject: &Subject) -> Attachment {
        let works = match subject.life {
            Life::Server(server) => server.works,
            Life::Short | Life::Waits | Life::Lines(_) => Works::Itself,
        };
        let follow: &[&str] = if works == Works::NewChildren { &["--follow"] } else { &[] };
        let output = if works == Works::NewChildren { output.to_owned() } else { format!("{output}one.snap.zst") };
        let argv = [&[aggregator, "--duration", "1", "-o", &output], follow, &["--attach"]].concat();
        let argv = argv.into_iter().map(str::to_owned).collect();
        Attachment { argv, works, aggregator: None, traces: Traces::default() }
    }

    /// Attaches to the process, or to its first child. Waits until the aggregator reports success
    /// or refusal.
    fn begin(&mut self, pid: u32) -> Result<()> {
        let pid = match self.works {
            Works::Itself | Works::NewChildren => pid,
            Works::FirstChild => {
                let deadline = Instant::now() + Duration::from_secs(30);
                wait_until(deadline, || !children_of(pid).is_empty());
                children_of(pid).first().copied().context("it has no child to attach to")?
            }
        };
        let mut argv = self.argv.clone();
        argv.push(pid.to_string());
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let launch = Launch { argv: &argv, environment: &environment, folder: Path::new("/") };
        let aggregator = Running::start(&launch).context("the aggregator does not start")?;
        aggregator.stderr.wait_for_lines(1, Instant::now() + Duration::from_secs(60));
        self.aggregator = Some(aggregator);
        Ok(())
    }

    /// Waits until the aggregator has detached.
    fn finish(&mut self) -> Result<()> {
        let Some(mut aggregator) = self.aggregator.take() else { return Ok(()) };
        let status = aggregator.wait(Instant::now() + Duration::from_secs(60))?;
        aggregator.signal(libc::SIGKILL);
        if status.is_none() {
            aggregator.wait(Instant::now() + Duration::from_secs(10))?;
        }
        let text = aggregator.stderr.finish();
        self.traces.said = without_own_lines(&text).1;
        self.traces.refused = !self.traces.said.iter().any(|line| line.starts_with("attached to "));
        if status.is_none() {
            bail!("the aggregator does not end its attach");
        }
        Ok(())
    }
}

const OWN: &str = "heapline: ";

/// Takes Heapline's lines off the end of a stream. Returns the rest, and the lines without their
/// mark.
fn without_own_lines(stream: &[u8]) -> (Vec<u8>, Vec<String>) {
    let mut rest = stream.to_vec();
    let mut said = Vec::new();
    while rest.last() == Some(&b'\n') {
        let line_start = rest[..rest.len() - 1].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        // The program's last line may lack a newline.
        let line = &rest[line_start..];
        let Some(at) = line.windows(OWN.len()).position(|window| window == OWN.as_bytes()) else { break };
        let text = String::from_utf8_lossy(&line[at + OWN.len()..]).trim_end().to_owned();
        said.insert(0, text);
        rest.truncate(line_start + at);
    }
    (rest, said)
}

/// Returns all snapshots below a folder, including snapshots of programs replaced by exec.
fn snapshots_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_string_lossy().contains(".snap.zst") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// Runs a helper to its end, in the environment of the subjects.
pub fn output(argv: &[String], folder: &Path, limit: Duration) -> Result<Behaviour> {
    let environment = environment(folder);
    let launch = Launch { argv, environment: &environment, folder };
    let mut process = Running::start(&launch).with_context(|| format!("{} does not start", argv[0]))?;
    process.end_input();
    let status = process.wait(Instant::now() + limit)?.map(shell_status);
    process::end_all_children();
    let (stdout, stderr) = (process.stdout.finish(), process.stderr.finish());
    Ok(Behaviour { status, stdout, stderr, ..Behaviour::default() })
}

/// Returns the last line with any text.
pub fn last_line(stream: &[u8]) -> String {
    let text = String::from_utf8_lossy(stream);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("no word").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heaplines_lines_are_taken_off_the_end_even_behind_an_unfinished_line() {
        let (rest, said) = without_own_lines(b"heapline: not ours\na warningheapline: 1 KiB\nheapline: NOT EXACT\n");
        assert_eq!(said, ["1 KiB", "NOT EXACT"]);
        assert_eq!(rest, b"heapline: not ours\na warning");
        assert_eq!(without_own_lines(b"no end"), (b"no end".to_vec(), Vec::new()));
    }
}
