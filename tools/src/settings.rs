//! The user's settings for all reports: `heapline/report.toml` in the folder of configurations.
//!
//! ```toml
//! skip = ["pool_*", "*/vendor/*"]     # as --skip
//! ```
//!
//! A missing file means no settings. An unknown word, or a file that cannot be read, is an error: a
//! report with other blamed frames than the user expects would mislead.

use serde::Deserialize;
use std::env;
use std::io;
use std::path::{Path, PathBuf};

/// Settings of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Patterns of functions and files that are nobody's own code.
    #[serde(default)]
    pub skip: Vec<String>,
}

/// Reason why settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file could not be read.
    #[error("cannot read the settings in {}: {error}; mend the file, or use --no-config", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// The content is not understood.
    #[error("{}, line {line}: {text}; the file may have skip = [\"GLOB\", ...]; or use --no-config", path.display())]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong, in one line.
        text: String,
    },
}

impl Settings {
    /// Reads the user's settings.
    ///
    /// # Errors
    ///
    /// Fails with a [`SettingsError`].
    pub fn of_user() -> Result<Settings, SettingsError> {
        path(|name| env::var_os(name).map(PathBuf::from)).map_or(Ok(Settings::default()), |path| Settings::read(&path))
    }

    fn read(path: &Path) -> Result<Settings, SettingsError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settings::default()),
            Err(error) => return Err(SettingsError::Read { path: path.to_path_buf(), error }),
        };
        toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let text = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            SettingsError::Content { path: path.to_path_buf(), line, text }
        })
    }
}

/// Path of the user's file, by the XDG Base Directory Specification. Relative folders do not count.
fn path(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(folder.join("heapline/report.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn patterns_are_read_and_faults_are_told_in_a_line() {
        let skip = vec!["pool_*".to_string(), "*/vendor/*".to_string()];
        assert_eq!(read("# mine\nskip = ['pool_*',\n  \"*/vendor/*\"]\n"), Ok(Settings { skip }));
        assert_eq!(read(""), Ok(Settings::default()));
        for (text, line, reason) in [
            ("\nskip = 5", "line 2", "invalid type"),
            ("skipp = []", "line 1", "unknown field `skipp`"),
            ("skip = [", "line 1", ""),
            ("skip = [1]", "line 1", "invalid type"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(line) && error.contains(reason) && error.contains("--no-config"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        assert_eq!(Settings::read(Path::new("/nowhere/report.toml")).unwrap(), Settings::default());
        assert!(Settings::read(Path::new("/")).unwrap_err().to_string().contains("cannot read the settings in /"));
    }

    #[test]
    fn the_folder_is_xdgs() {
        let of = |xdg: Option<&str>, home: Option<&str>| {
            path(|name| if name == "HOME" { home } else { xdg }.map(PathBuf::from))
        };
        let file = |folder: &str| Some(Path::new(folder).join("heapline/report.toml"));
        assert_eq!(of(Some("/x"), Some("/home/me")), file("/x"));
        assert_eq!(of(Some("x"), Some("/home/me")), file("/home/me/.config"));
        assert_eq!(of(None, Some("/home/me")), file("/home/me/.config"));
        assert_eq!(of(None, None), None);
    }
}
