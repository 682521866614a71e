//! Writes the results of a laboratory run as Markdown: docs/laboratory.md.

use crate::catalogue::{Kind, exceptions};
use crate::compare::Part;
use crate::laboratory::Mode;
use crate::oracle::Oracle;
use crate::trace::Worth;
use crate::verdict::{Effect, Tried, Verdict};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Widest line of a paragraph.
const COLUMNS_OF_PROSE: usize = 100;

const MODES: [Mode; 3] = [Mode::Run, Mode::Sample, Mode::Attach];

/// Formats the whole page.
pub fn markdown(verdicts: &[Verdict], system: &str) -> String {
    let mut page = String::new();
    let _ = writeln!(
        page,
        "# Laboratory\n\n{} real programs alone and under Heapline, on {system}. `tests/world/README.md` says what is \
         run and how; this page is written by `heapline-world --markdown docs/laboratory.md`.\n\n\
         *Unharmed*: the same exit status, output and answers as alone. *Exact*: `report` names no loss, no \
         contradiction and nothing unseen, in any process of the run.\n",
        verdicts.len()
    );
    summary(&mut page, verdicts);
    harm(&mut page, verdicts);
    oracle(&mut page, verdicts);
    for kind in [Kind::Wheel, Kind::Server, Kind::Language] {
        each(&mut page, kind, verdicts);
    }
    remarkable_programs(&mut page, verdicts);
    unusable(&mut page, verdicts);
    wrapped(&page)
}

/// Wraps paragraphs and list items of a page; tables and headings stay as they are.
fn wrapped(page: &str) -> String {
    let mut out = String::with_capacity(page.len());
    for line in page.lines() {
        let indent = if line.starts_with("- ") { "  " } else { "" };
        let mut column = 0;
        let is_kept = line.starts_with(['|', '#']);
        for word in line.split(' ') {
            if column > 0 && !is_kept && column + 1 + word.chars().count() > COLUMNS_OF_PROSE {
                out.push('\n');
                out.push_str(indent);
                column = indent.len();
            } else if column > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += word.chars().count();
        }
        out.push('\n');
    }
    out
}

/// Formats a verdict in a line, for progress messages.
pub fn line(verdict: &Verdict) -> String {
    let cells = match &verdict.unusable {
        Some(why) => format!("not tried: {why}"),
        None => verdict.tried.iter().map(cell).collect::<Vec<_>>().join("; "),
    };
    let oracle = verdict.oracle.as_ref().map_or(String::new(), |oracle| format!("; valgrind: {}", opinion(oracle)));
    format!("{}:{} [{:.1} s] {cells}{oracle}", verdict.kind, verdict.name, verdict.seconds)
}

fn cell(tried: &Tried) -> String {
    let mode = tried.mode;
    match &tried.effect {
        Effect::Unharmed => format!("{mode}: {}", worth(&tried.worth)),
        Effect::NotStarted => format!("{mode}: {}", worth(&tried.worth)),
        Effect::Harmed(how) => format!("{mode}: HARMED: {}; {}", how.join(", "), worth(&tried.worth)),
    }
}

fn worth(worth: &Worth) -> String {
    match worth {
        Worth::Exact => "exact".to_owned(),
        Worth::Estimates => "estimates".to_owned(),
        Worth::Qualified(what) => format!("not all seen ({what})"),
        Worth::NotExact(why) => format!("not exact ({why})"),
        Worth::Nothing(why) => format!("nothing recorded ({why})"),
        Worth::Refused(why) => format!("refused ({})", without_ids(why)),
        Worth::Unreadable(why) => format!("UNREADABLE ({why})"),
    }
}

fn opinion(oracle: &Oracle) -> String {
    match oracle {
        Oracle::Equal => "equal".to_owned(),
        Oracle::Explained { why } => format!("differs, and it is known why ({why})"),
        Oracle::Silent { why } => format!("no comparison ({why})"),
        Oracle::Differs { heapline, valgrind } => format!("DIFFERS: {heapline}; valgrind: {valgrind}"),
        Oracle::SampleDiffers { heapline, valgrind } => {
            format!("SAMPLED DIFFERS: {heapline}; valgrind and the exact run: {valgrind}")
        }
    }
}

const COLUMNS: [&str; 9] =
    ["tried", "unharmed", "harmed", "exact", "estimates", "not all seen", "not exact", "nothing recorded", "refused"];

fn summary(page: &mut String, verdicts: &[Verdict]) {
    let _ = writeln!(page, "## Summary\n");
    let _ =
        writeln!(page, "| kind | mode | {} |\n| --- | --- |{}", COLUMNS.join(" | "), " --- |".repeat(COLUMNS.len()));
    for kind in Kind::ALL {
        for mode in MODES {
            let of_kind = verdicts.iter().filter(|verdict| verdict.kind == kind);
            let tried: Vec<&Tried> = of_kind.flat_map(|verdict| &verdict.tried).filter(|t| t.mode == mode).collect();
            if tried.is_empty() {
                continue;
            }
            let counts = counts(&tried).map(|count| count.to_string());
            let _ = writeln!(page, "| {kind} | {mode} | {} |", counts.join(" | "));
        }
    }
    let _ = writeln!(page);
}

fn counts(tried: &[&Tried]) -> [usize; 9] {
    let count = |is: fn(&Tried) -> bool| tried.iter().filter(|tried| is(tried)).count();
    [
        tried.len(),
        count(|t| t.effect == Effect::Unharmed),
        count(|t| matches!(t.effect, Effect::Harmed(_))),
        count(|t| t.worth == Worth::Exact),
        count(|t| t.worth == Worth::Estimates),
        count(|t| matches!(t.worth, Worth::Qualified(_))),
        count(|t| matches!(t.worth, Worth::NotExact(_) | Worth::Unreadable(_))),
        count(|t| matches!(t.worth, Worth::Nothing(_))),
        count(|t| matches!(t.worth, Worth::Refused(_))),
    ]
}

fn harm(page: &mut String, verdicts: &[Verdict]) {
    let _ = writeln!(page, "## Harm\n");
    let before = page.len();
    for verdict in verdicts {
        for tried in &verdict.tried {
            if let Effect::Harmed(how) = &tried.effect {
                let how = how.iter().map(|what| escaped(what)).collect::<Vec<_>>().join("; ");
                let _ = writeln!(page, "- {} `{}`, {}: {how}", verdict.kind, verdict.name, tried.mode);
            }
        }
    }
    if page.len() == before {
        let _ = writeln!(page, "None.");
    }
    let _ = writeln!(page);
}

fn oracle(page: &mut String, verdicts: &[Verdict]) {
    let compared: Vec<(&Verdict, &Oracle)> = verdicts.iter().filter_map(|v| Some((v, v.oracle.as_ref()?))).collect();
    if compared.is_empty() {
        return;
    }
    let count = |is: fn(&Oracle) -> bool| compared.iter().filter(|(_, oracle)| is(oracle)).count();
    let _ = writeln!(page, "## Exact, and valgrind\n");
    let _ = writeln!(
        page,
        "Of {} exact runs valgrind counts the same allocations, frees and bytes in {}; {} cannot be compared \
         (several processes, more rights than the caller's, or valgrind's own two runs differ). The others:\n",
        compared.len(),
        count(|oracle| *oracle == Oracle::Equal),
        count(|oracle| matches!(oracle, Oracle::Silent { .. })),
    );
    let mut others: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (verdict, oracle) in &compared {
        if !matches!(oracle, Oracle::Equal | Oracle::Silent { .. }) {
            others.entry(opinion(oracle)).or_default().push(&verdict.name);
        }
    }
    for (opinion, names) in others {
        let _ = writeln!(page, "- {opinion}: {}", names.join(", "));
    }
    let _ = writeln!(page);
}

fn each(page: &mut String, kind: Kind, verdicts: &[Verdict]) {
    let tried: Vec<&Verdict> = verdicts.iter().filter(|v| v.kind == kind && v.unusable.is_none()).collect();
    if tried.is_empty() {
        return;
    }
    let title = match kind {
        Kind::Program => "Programs",
        Kind::Wheel => "Wheels",
        Kind::Server => "Servers",
        Kind::Language => "Compilers and interpreters",
    };
    let _ = writeln!(page, "## {title}\n\n| name | run | run --sample 64K | attach | not compared |");
    let _ = writeln!(page, "| --- | --- | --- | --- | --- |");
    for verdict in tried {
        let cells = MODES.map(|mode| mode_cell(verdict, mode));
        let _ = writeln!(page, "| {} | {} | {} |", verdict.name, cells.join(" | "), varying(verdict));
    }
    let _ = writeln!(page);
}

fn mode_cell(verdict: &Verdict, mode: Mode) -> String {
    let Some(tried) = verdict.tried.iter().find(|tried| tried.mode == mode) else { return "-".to_owned() };
    let worth = escaped(&worth(&tried.worth));
    match tried.effect {
        Effect::Harmed(_) => format!("**harmed**, {worth}"),
        Effect::Unharmed | Effect::NotStarted => worth,
    }
}

fn varying(verdict: &Verdict) -> String {
    let name = |part: &Part| match part {
        Part::Status => "status",
        Part::Stdout => "output",
        Part::Stderr => "errors",
        Part::Dialogue => "answers",
        Part::Trouble => "whether it answers",
    };
    verdict.varying.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Writes the programs with traces that are not exact, grouped by the reason.
fn remarkable_programs(page: &mut String, verdicts: &[Verdict]) {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let programs = verdicts.iter().filter(|verdict| verdict.kind == Kind::Program);
    for verdict in programs {
        for tried in &verdict.tried {
            if !matches!(tried.worth, Worth::Exact | Worth::Estimates) {
                // A reason with the program's own name would be a group of its own.
                let worth = worth(&tried.worth).replace(&format!("/usr/bin/{}", verdict.name), "it");
                groups.entry(format!("{}: {worth}", tried.mode)).or_default().push(&verdict.name);
            }
        }
    }
    let _ = writeln!(page, "## Programs of /usr/bin that are not traced exactly\n");
    if groups.is_empty() {
        let _ = writeln!(page, "None.");
    }
    for (what, names) in groups {
        let _ = writeln!(page, "- {} ({}): {}", escaped(&what), names.len(), names.join(", "));
    }
    let _ = writeln!(page);
}

fn unusable(page: &mut String, verdicts: &[Verdict]) {
    let _ = writeln!(page, "## Not tried\n");
    for (name, reason) in exceptions() {
        let _ = writeln!(page, "- program {name}: {reason}");
    }
    for verdict in verdicts {
        if let Some(why) = &verdict.unusable {
            let _ = writeln!(page, "- {} {}: {}", verdict.kind, verdict.name, escaped(why));
        }
    }
    let alone = |part: Part| {
        let names =
            verdicts.iter().filter(|verdict| verdict.varying.contains(&part)).map(|verdict| verdict.name.as_str());
        names.collect::<Vec<_>>()
    };
    for (part, name) in [(Part::Stdout, "standard output"), (Part::Stderr, "standard error")] {
        let names = alone(part);
        if !names.is_empty() {
            let _ = writeln!(page, "\nTwo runs alone differ in {name}, which is not compared: {}.", names.join(", "));
        }
    }
}

/// Replaces the ids of processes and threads in a reason by `N`: they differ in each run.
fn without_ids(why: &str) -> String {
    let is_id = |before: &str| before.ends_with("process") || before.ends_with("thread");
    let mut words: Vec<&str> = Vec::new();
    for word in why.split(' ') {
        let is_number = word.trim_end_matches(':').parse::<u32>().is_ok();
        words.push(if is_number && words.last().is_some_and(|before| is_id(before)) { "N" } else { word });
    }
    words.join(" ")
}

/// Escapes a text for Markdown.
fn escaped(text: &str) -> String {
    let text = text.replace('|', "\\|").replace('<', "&lt;");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn verdict(kind: Kind, name: &str, effect: Effect, worth: Worth) -> Verdict {
        let tried = vec![Tried { mode: Mode::Run, effect, worth }];
        let varying = BTreeSet::new();
        Verdict { kind, name: name.to_owned(), unusable: None, varying, tried, oracle: None, seconds: 0.1 }
    }

    #[test]
    fn the_summary_counts_and_harm_is_named() {
        let harmed = Effect::Harmed(vec!["exit status 139 instead of exit status 0".to_owned()]);
        let verdicts = [
            verdict(Kind::Program, "ls", Effect::Unharmed, Worth::Exact),
            verdict(Kind::Program, "jq", Effect::NotStarted, Worth::Refused("static".to_owned())),
            verdict(Kind::Wheel, "pyarrow", harmed, Worth::Exact),
        ];
        let page = markdown(&verdicts, "Debian");
        assert!(page.contains("| program | run | 2 | 1 | 0 | 1 | 0 | 0 | 0 | 0 | 1 |"), "{page}");
        assert!(page.contains("- wheel `pyarrow`, run: exit status 139 instead of exit status 0"), "{page}");
        assert!(page.contains("| pyarrow | **harmed**, exact | - | - |"), "{page}");
        assert!(page.contains("- run: refused (static) (1): jq"), "{page}");
    }

    #[test]
    fn a_reason_has_no_process_ids() {
        assert_eq!(
            without_ids("process 12 has 3 threads (thread 12: it is in f)"),
            "process N has 3 threads (thread N it is in f)"
        );
    }

    #[test]
    fn a_text_cannot_end_a_cell() {
        assert_eq!(escaped("a | b\nc"), "a \\| b c");
    }
}
