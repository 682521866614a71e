//! The look of the text: width, colours, and the amount of detail.

use super::fit;
use anstyle::{AnsiColor, Style};
use heapline_shared_format::text::printable;
use std::fmt::{self, Display};
use std::io::{self, Write};

/// The look of a report for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// Columns of the terminal. None without a terminal: then lines have a form for scripts, and
    /// any length.
    pub width: Option<usize>,
    /// Whether the text has colours.
    pub has_colours: bool,
    /// Whether all facts of the snapshot are shown, all processes, and names of any length.
    pub is_verbose: bool,
}

/// Role of a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Plain,
    /// A heading, or another text that only helps to read.
    Quiet,
    /// The size of a row.
    Size,
    /// A file and line.
    Place,
    /// The name of a function.
    Function,
    /// A mark or a warning.
    Loud,
}

/// A piece of text with the colour of its role.
pub(super) struct Painted<T> {
    text: T,
    style: Style,
}

impl Layout {
    /// Gives `text` the colour of a role.
    pub(super) fn paint<T: Display>(self, role: Role, text: T) -> Painted<T> {
        let style = match role {
            _ if !self.has_colours => Style::new(),
            Role::Plain => Style::new(),
            Role::Quiet => Style::new().dimmed(),
            Role::Size => Style::new().bold(),
            Role::Place => AnsiColor::Cyan.on_default(),
            Role::Function => AnsiColor::Green.on_default(),
            Role::Loud => AnsiColor::Yellow.on_default().bold(),
        };
        Painted { text, style }
    }

    /// Greatest width of a name in `room` columns.
    pub(super) fn most(self, room: usize) -> usize {
        if self.is_verbose || self.width.is_none() { usize::MAX } else { room }
    }

    /// Writes a sentence: a line, or as many lines as a narrow terminal needs.
    pub(super) fn say(self, role: Role, text: &str, out: &mut dyn Write) -> io::Result<()> {
        let text = printable(text);
        match self.width {
            None => writeln!(out, "{}", self.paint(role, text)),
            Some(width) => {
                fit::wrapped(&text, width).iter().try_for_each(|line| writeln!(out, "{}", self.paint(role, line)))
            }
        }
    }
}

impl<T: Display> Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{:#}", self.style, self.text, self.style)
    }
}
