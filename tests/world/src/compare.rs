//! Compares a program's behaviour under Heapline with its behaviour alone.
//!
//! - Parts that differ between two runs alone (a date, a process id) are not compared.
//! - Messages of servers are compared without numbers: they contain the time, the server's process
//!   and the sender of a signal.
//! - Messages of servers are compared without their order: clients come and go concurrently.
//! - Lines of several processes are compared without their order too.

use crate::catalogue::Kind;
use crate::laboratory::Behaviour;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A part of a program's behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Exit status.
    Status,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Answers of a server to its client.
    Dialogue,
    /// Whether the program listened and answered at all.
    Trouble,
}

const PARTS: [Part; 5] = [Part::Status, Part::Trouble, Part::Dialogue, Part::Stdout, Part::Stderr];

/// Behaviour of a subject alone.
pub struct Baseline {
    runs: Vec<Behaviour>,
    ignores_numbers: bool,
    ignores_order: bool,
}

impl Baseline {
    /// Makes a baseline of two runs alone.
    pub fn new(kind: Kind, first: Behaviour, second: Behaviour) -> Baseline {
        let is_server = kind == Kind::Server;
        Baseline { runs: vec![first, second], ignores_numbers: is_server, ignores_order: is_server }
    }

    /// Adds another run alone.
    pub fn add(&mut self, run: Behaviour) {
        self.runs.push(run);
    }

    /// Notes the number of processes in a run. The lines of several processes have no fixed order.
    pub fn has_processes(&mut self, processes: usize) {
        self.ignores_order |= processes > 1;
    }

    /// Returns the parts that differ between runs alone, and are not compared.
    pub fn varying(&self) -> BTreeSet<Part> {
        let [first, others @ ..] = self.runs.as_slice() else { return BTreeSet::new() };
        let differs = |part: &Part| others.iter().any(|other| self.part(*part, first) != self.part(*part, other));
        PARTS.into_iter().filter(differs).collect()
    }

    /// Describes the differences of a traced run, in a sentence for each part.
    pub fn harm(&self, traced: &Behaviour) -> Vec<String> {
        let varying = self.varying();
        let Some(alone) = self.runs.first() else { return Vec::new() };
        let differs = |part: &Part| self.part(*part, alone) != self.part(*part, traced);
        let harmed = PARTS.into_iter().filter(|part| !varying.contains(part)).filter(differs);
        harmed.map(|part| self.difference(part, alone, traced)).collect()
    }

    /// Returns the comparable content of a part.
    fn part(&self, part: Part, run: &Behaviour) -> Vec<u8> {
        match part {
            Part::Status => format!("{:?}", run.status).into_bytes(),
            Part::Trouble => run.trouble.clone().unwrap_or_default().into_bytes(),
            Part::Dialogue => run.dialogue.clone().into_bytes(),
            Part::Stdout => self.text(&run.stdout),
            Part::Stderr => self.text(&run.stderr),
        }
    }

    fn text(&self, text: &[u8]) -> Vec<u8> {
        let text = if self.ignores_numbers { without_numbers(text) } else { text.to_vec() };
        if self.ignores_order { in_order(&text) } else { text }
    }

    fn difference(&self, part: Part, alone: &Behaviour, traced: &Behaviour) -> String {
        let differs = || first_difference(&self.part(part, alone), &self.part(part, traced));
        match part {
            Part::Status => format!("{} instead of {}", traced.end(), alone.end()),
            Part::Trouble => traced.trouble.clone().unwrap_or_else(|| "no trouble".to_owned()),
            Part::Stdout => format!("standard output: {}", differs()),
            Part::Stderr => format!("standard error: {}", differs()),
            Part::Dialogue => format!("answers: {}", differs()),
        }
    }
}

/// Replaces each number in a text by `#`.
fn without_numbers(text: &[u8]) -> Vec<u8> {
    let mut masked = text.to_vec();
    masked.iter_mut().filter(|byte| byte.is_ascii_digit()).for_each(|byte| *byte = b'#');
    masked.dedup_by(|next, previous| *next == b'#' && *previous == b'#');
    masked
}

/// Sorts the lines of a text.
fn in_order(text: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|&byte| byte == b'\n').collect();
    lines.sort_unstable();
    lines.concat()
}

/// Describes the first differing lines.
fn first_difference(alone: &[u8], traced: &[u8]) -> String {
    let (alone, traced) = (String::from_utf8_lossy(alone), String::from_utf8_lossy(traced));
    let (mut alone, mut traced) = (alone.lines(), traced.lines());
    loop {
        match (alone.next(), traced.next()) {
            (None, None) => return "another line end".to_owned(),
            (one, other) if one == other => {}
            (one, other) => {
                let shown = |line: Option<&str>| line.map_or("nothing".to_owned(), |line| format!("{:?}", cut(line)));
                return format!("{} instead of {}", shown(other), shown(one));
            }
        }
    }
}

fn cut(line: &str) -> String {
    line.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(status: i32, stdout: &str) -> Behaviour {
        Behaviour { status: Some(status), stdout: stdout.into(), ..Behaviour::default() }
    }

    fn steady(kind: Kind, status: i32, stdout: &str) -> Baseline {
        Baseline::new(kind, run(status, stdout), run(status, stdout))
    }

    #[test]
    fn another_status_and_another_line_are_harm() {
        let harm = steady(Kind::Program, 0, "a\nb\n").harm(&run(139, "a\nc\n"));
        assert_eq!(harm, ["exit status 139 instead of exit status 0", "standard output: \"c\" instead of \"b\""]);
    }

    #[test]
    fn what_varies_alone_is_not_compared() {
        let baseline = Baseline::new(Kind::Program, run(0, "pid 1"), run(0, "pid 2"));
        assert_eq!(baseline.varying(), BTreeSet::from([Part::Stdout]));
        assert!(baseline.harm(&run(0, "pid 3")).is_empty());
        assert_eq!(baseline.harm(&run(1, "pid 3")), ["exit status 1 instead of exit status 0"]);
    }

    #[test]
    fn a_third_run_alone_can_show_that_a_part_varies() {
        let mut baseline = steady(Kind::Program, 0, "monday");
        assert_eq!(baseline.harm(&run(0, "tuesday")).len(), 1);
        baseline.add(run(0, "wednesday"));
        assert!(baseline.harm(&run(0, "tuesday")).is_empty());
    }

    #[test]
    fn a_servers_messages_are_compared_without_their_numbers() {
        let text = "12:30:01 pid 9";
        assert!(steady(Kind::Server, 0, text).harm(&run(0, "12:30:17 pid 1234")).is_empty());
        assert_eq!(steady(Kind::Program, 0, text).harm(&run(0, "12:30:17 pid 1234")).len(), 1);
        assert_eq!(steady(Kind::Server, 0, text).harm(&run(0, "12:30:01 error 9")).len(), 1);
    }

    #[test]
    fn a_servers_messages_are_compared_without_their_order() {
        let server = steady(Kind::Server, 0, "opened 1\nclosed 1\nopened 2\n");
        assert!(server.harm(&run(0, "opened 1\nopened 2\nclosed 1\n")).is_empty());
        assert_eq!(server.harm(&run(0, "opened 1\nopened 2\n")).len(), 1);
    }

    #[test]
    fn lines_of_several_processes_are_compared_without_their_order() {
        let mut baseline = steady(Kind::Program, 0, "grops\ntroff\n");
        baseline.has_processes(1);
        assert_eq!(baseline.harm(&run(0, "troff\ngrops\n")).len(), 1);
        baseline.has_processes(3);
        assert!(baseline.harm(&run(0, "troff\ngrops\n")).is_empty());
        assert_eq!(baseline.harm(&run(0, "troff\n")).len(), 1);
    }

    #[test]
    fn a_program_that_does_not_end_is_harmed() {
        let traced = Behaviour { status: None, ..run(0, "") };
        assert_eq!(steady(Kind::Program, 0, "").harm(&traced), ["no end instead of exit status 0"]);
    }
}
