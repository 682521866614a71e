//! Output of a report as text, JSON or CSV.

pub mod csv;
pub mod json;
mod size;
mod source;
pub mod text;

pub use size::format_size;
pub use source::Sources;

use std::borrow::Cow;

/// Returns `text` with control characters escaped. Names come from the target, which may be
/// hostile: no name may send a command to a terminal, or split a line in two.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        text.chars().map(escape).collect::<String>().into()
    } else {
        text.into()
    }
}
