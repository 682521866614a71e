//! The commands in the documents: every option exists, and the options of a command go together.

use crate::support::programs;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The documents with commands for users.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = vec![root.join("README.md"), root.join("python/README.md")];
    for folder in ["docs", "docs/examples"] {
        let entries = std::fs::read_dir(root.join(folder)).expect("a folder of documents");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    found
}

/// Returns the words of the commands of `program` in the code of a document. A command ends at a
/// comment, at `;`, `&`, `|` and `>`.
fn commands(text: &str, program: &str) -> Vec<Vec<String>> {
    let mut is_code = false;
    let code = text.lines().filter(|line| {
        is_code ^= line.starts_with("```");
        is_code
    });
    let commands = code.filter_map(|line| {
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let line = line.strip_prefix("tools/").unwrap_or(line);
        line.strip_prefix(program)?.strip_prefix(' ')
    });
    commands.map(words).collect()
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, '#') if word.is_none() => break,
            (None, ';' | '&' | '|' | '>') => break,
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn the_words_of_a_command_are_a_shells() {
    assert_eq!(words("a.zst --filter '*/x y/*' -o b   # a comment"), ["a.zst", "--filter", "*/x y/*", "-o", "b"]);
    assert_eq!(words("a \"\" b; sleep 1"), ["a", "", "b"]);
    assert_eq!(commands("report a\n```sh\n$ report b\nreports c\n```\n", "report"), [["b"]]);
}

#[test]
fn every_report_in_a_document_has_options_that_exist_and_go_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut seen = 0;
    for path in documents() {
        for words in commands(&std::fs::read_to_string(&path).expect("a document"), "report") {
            let mut report = Command::new(&programs().report);
            let report = report.args(&words).arg("--no-config").env("DEBUGINFOD_URLS", "http://127.0.0.1:9");
            let output = report.current_dir(&folder).output().expect("report runs");
            let error = String::from_utf8(output.stderr).expect("UTF-8");
            // The snapshot of the example is missing, which is found behind the options.
            let is_missing = error.contains("cannot open snapshot") || error.contains("cannot read");
            assert!(output.status.code() == Some(1) && is_missing, "{}: {words:?}: {error}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} commands");
}

#[test]
fn every_command_of_the_aggregator_in_a_document_is_understood() {
    let mut seen = BTreeMap::new();
    for path in documents() {
        for words in commands(&std::fs::read_to_string(&path).expect("a document"), "aggregator") {
            let pids = words.iter().map(|word| if word == "PID" { "6355" } else { word });
            let arguments = std::iter::once("aggregator").chain(pids).map(Into::into);
            let parsed = heapline_aggregator::cli::parse(arguments);
            assert!(parsed.is_ok(), "{}: {words:?}: {parsed:?}", path.display());
            *seen.entry(words[0].clone()).or_insert(0) += 1;
        }
    }
    assert!(["run", "ctl", "--attach"].iter().all(|kind| seen.get(*kind).is_some_and(|&count| count > 4)), "{seen:?}");
}
