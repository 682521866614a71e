//! Export as folded stacks for flame graph tools: `root;child;leaf bytes`, a line per traceback.

use crate::query::report::Report;
use crate::query::statistics::Key;
use std::io::{self, Write};

/// Writes a report grouped by [`crate::query::statistics::By::Tree`]. Frames are named by
/// functions.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let names = &report.tracebacks;
    for row in report.shown() {
        let Key::Traceback(id) = row.stat.key else { continue };
        for (index, frame) in names.oldest_first(id).iter().enumerate() {
            if index > 0 {
                out.write_all(b";")?;
            }
            frame_name(names.text(frame.function), out)?;
        }
        writeln!(out, " {}", row.stat.size)?;
    }
    Ok(())
}

/// Writes a function's name. The format cannot quote separators of frames and lines, so a colon
/// replaces each.
fn frame_name(function: &str, out: &mut dyn Write) -> io::Result<()> {
    for (index, part) in function.split(|c: char| c == ';' || c.is_control()).enumerate() {
        if index > 0 {
            out.write_all(b":")?;
        }
        out.write_all(part.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::frame_name;

    #[test]
    fn separators_do_not_survive_in_names() {
        for (function, expected) in [("f<a;b>\n", "f<a:b>:"), ("a::b c", "a::b c")] {
            let mut out = Vec::new();
            frame_name(function, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
