//! Suppressions: known leaks that a report on leaks leaves out.
//!
//! The file has LeakSanitizer's format. Each line is `leak:PATTERN`, a comment behind `#`, or
//! empty. [`Template`] has the patterns. `LSAN_OPTIONS` is not read.

use crate::query::template::Template;
use std::io;
use std::path::{Path, PathBuf};

/// The patterns of a file, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions(pub Vec<Template>);

/// Reason why suppressions could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SuppressionError {
    /// The file could not be read.
    #[error("cannot read the suppressions in {}: {error}; give a file with lines of leak:PATTERN", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// A line is not understood.
    #[error("{}, line {line}: {text}", path.display())]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        text: String,
    },
}

impl Suppressions {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Fails with a [`SuppressionError`].
    pub fn read(path: &Path) -> Result<Suppressions, SuppressionError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SuppressionError::Read { path: path.to_path_buf(), error })?;
        let content = |(line, text)| SuppressionError::Content { path: path.to_path_buf(), line, text };
        Suppressions::parse(&text).map_err(content)
    }

    /// Parses the text of a file. An error has the number of the line.
    fn parse(text: &str) -> Result<Suppressions, (usize, String)> {
        let mut templates = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let pattern = line.strip_prefix("leak:").ok_or_else(|| {
                (number, format!("{line:?} is no suppression of a leak: use leak:PATTERN, or # for a comment"))
            })?;
            templates.push(pattern.parse().map_err(|error| (number, error))?);
        }
        Ok(Suppressions(templates))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_suppressions_and_faults_have_their_line() {
        let patterns = |text: &str| {
            Suppressions::parse(text).map(|found| found.0.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let file = "# known\n\nleak:^cache_*\r\n  leak:libfoo.so  \n#leak:no\n";
        assert_eq!(patterns(file), Ok(vec!["^cache_*".to_owned(), "libfoo.so".to_owned()]));
        assert_eq!(patterns(""), Ok(Vec::new()));
        for (text, line, reason) in
            [("\nrace:x", 2, "use leak:PATTERN"), ("leak:", 1, "the pattern is empty"), ("cache", 1, "no suppression")]
        {
            let (at, error) = patterns(text).expect_err(text);
            assert!(at == line && error.contains(reason), "{text}: {at}: {error}");
        }
        let error = Suppressions::read(Path::new("/nowhere/supp.txt")).expect_err("missing").to_string();
        assert!(error.starts_with("cannot read the suppressions in /nowhere/supp.txt: "), "{error}");
    }
}
