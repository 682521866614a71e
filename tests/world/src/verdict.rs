//! Judges whether Heapline harms a subject: compares traced runs with runs alone.
//!
//! 1. The subject runs alone twice.
//! 2. The subject runs traced, in each mode.
//! 3. If a traced run differs, the subject runs alone up to three times more, since behaviour may
//!    vary by itself.
//! 4. If the difference remains, the subject runs traced once more.

use crate::catalogue::{Kind, Life, Subject};
use crate::compare::{Baseline, Part};
use crate::laboratory::{Behaviour, Laboratory, Mode, last_line};
use crate::oracle::{self, Oracle};
use crate::trace::{Trace, Worth};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Instant;

/// Further runs alone of a subject with a difference in a traced run.
const RUNS_IN_DOUBT: usize = 3;

/// Effect of tracing on a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", content = "how", rename_all = "kebab-case")]
pub enum Effect {
    /// The program behaved as it does alone.
    Unharmed,
    /// The program behaved differently: the list of differences.
    Harmed(Vec<String>),
    /// Heapline did not start the program.
    NotStarted,
}

/// Result of a mode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tried {
    /// The mode.
    pub mode: Mode,
    /// Effect of tracing on the program.
    pub effect: Effect,
    /// Value of the trace's numbers.
    pub worth: Worth,
}

/// Results of a subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Kind of the subject.
    pub kind: Kind,
    /// The subject's name.
    pub name: String,
    /// Reason why the subject cannot be tried: not installed, or fails alone.
    pub unusable: Option<String>,
    /// Parts that differ between runs alone, and are not compared.
    pub varying: BTreeSet<Part>,
    /// Results in all modes tried.
    pub tried: Vec<Tried>,
    /// Comparison with valgrind's counts.
    pub oracle: Option<Oracle>,
    /// Duration of all runs, in seconds.
    pub seconds: f64,
}

impl Verdict {
    /// Whether Heapline is to blame: for harm, for an unreadable snapshot, or for counts that
    /// differ from valgrind's.
    pub fn is_bad(&self) -> bool {
        let is_harmed = self.tried.iter().any(|tried| matches!(tried.effect, Effect::Harmed(_)));
        let is_unreadable = self.tried.iter().any(|tried| matches!(tried.worth, Worth::Unreadable(_)));
        is_harmed || is_unreadable || matches!(self.oracle, Some(Oracle::Differs { .. } | Oracle::SampleDiffers { .. }))
    }
}

/// Plan for each subject.
pub struct Plan {
    /// Modes to try.
    pub modes: Vec<Mode>,
    /// Whether valgrind counts too.
    pub oracle: bool,
}

/// Tries a subject in all modes.
pub fn judge(laboratory: &Laboratory, subject: &Subject, plan: &Plan) -> Verdict {
    let began = Instant::now();
    let mut verdict = Verdict {
        kind: subject.kind,
        name: subject.name.clone(),
        unusable: None,
        varying: BTreeSet::new(),
        tried: Vec::new(),
        oracle: None,
        seconds: 0.0,
    };
    if !subject.is_installed() {
        verdict.unusable = Some(format!("{} is not installed (--setup installs)", subject.program.display()));
    } else if let Err(error) = judge_installed(laboratory, subject, plan, &mut verdict) {
        verdict.unusable = Some(format!("{error:#}"));
    }
    verdict.seconds = began.elapsed().as_secs_f64();
    verdict
}

fn judge_installed(laboratory: &Laboratory, subject: &Subject, plan: &Plan, verdict: &mut Verdict) -> Result<()> {
    let first = laboratory.alone(subject, &[], &[])?;
    if let Some(why) = fails_alone(subject, &first) {
        verdict.unusable = Some(why);
        return Ok(());
    }
    let second = laboratory.alone(subject, &[], &[])?;
    let ends = [&first, &second].map(end_of);
    let mut baseline = Baseline::new(subject.kind, first, second);
    if baseline.varying().iter().any(|part| matches!(part, Part::Status | Part::Trouble)) {
        verdict.unusable = Some(format!("ends alone now in one way, now in another: {}", ends.join(" / ")));
        return Ok(());
    }
    for &mode in &plan.modes {
        let Some((behaviour, traces)) = laboratory.traced(subject, mode, &[])? else { continue };
        let trace = Trace::read(&laboratory.programs.report, &traces, mode);
        baseline.has_processes(traces.snapshots.len());
        let effect = match traces.refused && mode != Mode::Attach {
            true => Effect::NotStarted,
            false => effect(laboratory, subject, mode, &mut baseline, &behaviour)?,
        };
        verdict.tried.push(Tried { mode, effect, worth: trace.worth });
    }
    verdict.varying = baseline.varying();
    let claims_counts = verdict.tried.iter().any(|tried| tried.mode == Mode::Run && tried.worth.claims_counts());
    if plan.oracle && claims_counts && matches!(subject.life, Life::Short) {
        verdict.oracle = Some(oracle::compare(laboratory, subject)?);
    }
    Ok(())
}

/// Describes the end of a run in a few words.
fn end_of(run: &Behaviour) -> String {
    let trouble = run.trouble.as_deref().unwrap_or("no trouble");
    format!("{}, {trouble}, {}", run.end(), last_line(&run.stderr))
}

/// Reason why a subject's behaviour alone cannot be compared with; none if it can.
fn fails_alone(subject: &Subject, alone: &Behaviour) -> Option<String> {
    let said = || last_line(&alone.stderr);
    if let Some(trouble) = &alone.trouble {
        return Some(format!("fails alone: {trouble}: {}", said()));
    }
    match (alone.status, subject.kind, subject.life) {
        (None, ..) => Some("does not end alone".to_owned()),
        // A program that does not know `--version` says so. Its exit status is compared all the
        // same.
        (_, Kind::Program, Life::Short | Life::Waits) | (Some(0), ..) | (_, Kind::Server, _) => None,
        (Some(status), ..) => Some(format!("fails alone: exit status {status}: {}", said())),
    }
}

fn effect(
    laboratory: &Laboratory,
    subject: &Subject,
    mode: Mode,
    baseline: &mut Baseline,
    traced: &Behaviour,
) -> Result<Effect> {
    let mut harm = baseline.harm(traced);
    for _ in 0..RUNS_IN_DOUBT {
        if harm.is_empty() {
            return Ok(Effect::Unharmed);
        }
        baseline.add(laboratory.alone(subject, &[], &[])?);
        harm = baseline.harm(traced);
    }
    if harm.is_empty() {
        return Ok(Effect::Unharmed);
    }
    let again = laboratory.traced(subject, mode, &[])?;
    let is_harmed_again = again.is_some_and(|(again, _)| !baseline.harm(&again).is_empty());
    let times = if is_harmed_again { "" } else { " (one time of two)" };
    Ok(Effect::Harmed(harm.into_iter().map(|what| what + times).collect()))
}
