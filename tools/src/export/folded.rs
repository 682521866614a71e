//! Folded stacks: `root;child;leaf bytes`, one line per traceback, as flame graph tools read them.

use crate::report::Report;
use crate::statistics::Key;
use std::io::{self, Write};

/// Writes the tracebacks of a report by traceback. Functions name the frames.
///
/// # Errors
///
/// Those of `out`.
pub fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let names = &report.tracebacks;
    for row in report.shown() {
        let Key::Traceback(id) = row.stat.key else { continue };
        let frames = names.oldest_first(id);
        let functions: Vec<String> = frames.iter().map(|frame| frame_name(names.text(frame.function))).collect();
        writeln!(out, "{} {}", functions.join(";"), row.stat.size)?;
    }
    Ok(())
}

/// The format has no way to quote what it separates frames and lines by.
fn frame_name(function: &str) -> String {
    function.chars().map(|c| if c == ';' || c.is_control() { ':' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::frame_name;

    #[test]
    fn separators_do_not_survive_in_names() {
        assert_eq!(frame_name("f<a;b>\n"), "f<a:b>:");
        assert_eq!(frame_name("a::b c"), "a::b c");
    }
}
