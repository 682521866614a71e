//! A table for a terminal: columns of figures, and a last column with the rest of the width.
//!
//! No row is wider than the terminal. On a narrow terminal the least important columns are left
//! out.

use super::fit;
use super::layout::{Layout, Role};
use std::io::{self, Write};

/// Columns between two columns of a table.
const GAP: usize = 2;
/// Least width of the last column that is worth a column of figures.
const LEAST_ROOM: usize = 20;

/// A column of figures, right-aligned.
pub(super) struct Column {
    heading: String,
    cells: Vec<String>,
    role: Role,
    /// Columns with a greater importance stay longer on a narrow terminal.
    importance: u8,
    width: usize,
}

impl Column {
    pub(super) fn new(heading: impl Into<String>, role: Role, importance: u8, cells: Vec<String>) -> Column {
        let heading = heading.into();
        let width = cells.iter().chain([&heading]).map(|cell| fit::columns(cell)).max().unwrap_or(0);
        Column { heading, cells, role, importance, width }
    }

    /// Returns the spaces in front of a cell.
    fn padding(&self, cell: &str) -> String {
        " ".repeat(self.width.saturating_sub(fit::columns(cell)))
    }
}

/// The columns of figures that fit.
pub(super) struct Table {
    layout: Layout,
    columns: Vec<Column>,
    /// Width of the last column.
    pub(super) room: usize,
}

impl Table {
    /// Leaves out empty columns, and columns without room in `width`.
    pub(super) fn new(layout: Layout, width: usize, mut columns: Vec<Column>) -> Table {
        columns.retain(|column| column.cells.iter().any(|cell| !cell.is_empty()));
        while used(&columns) + LEAST_ROOM > width && columns.len() > 1 {
            let least = columns.iter().map(|column| column.importance).min();
            columns.retain(|column| Some(column.importance) != least);
        }
        if used(&columns) >= width {
            columns.clear();
        }
        let room = width - used(&columns);
        Table { layout, columns, room }
    }

    /// Width of the columns of figures.
    pub(super) fn indent(&self) -> usize {
        used(&self.columns)
    }

    /// Whether a column has room.
    pub(super) fn has(&self, heading: &str) -> bool {
        self.columns.iter().any(|column| column.heading == heading)
    }

    /// Writes the headings; `last` is the heading of the last column.
    pub(super) fn head(&self, last: &str, out: &mut dyn Write) -> io::Result<()> {
        let headings =
            self.columns.iter().map(|column| format!("{}{}", column.padding(&column.heading), column.heading));
        let line: Vec<String> = headings.chain([fit::beginning(last, self.room).into_owned()]).collect();
        writeln!(out, "{}", self.layout.paint(Role::Quiet, line.join("  ")))
    }

    /// Writes a row; `last` is the content of the last column, at most as wide as the room.
    pub(super) fn row(&self, index: usize, last: &str, out: &mut dyn Write) -> io::Result<()> {
        for column in &self.columns {
            let cell = &column.cells[index];
            let role = if cell.is_empty() { Role::Plain } else { column.role };
            write!(out, "{}{}  ", column.padding(cell), self.layout.paint(role, cell))?;
        }
        writeln!(out, "{last}")
    }
}

/// Width of columns of figures, with the gap behind each.
fn used(columns: &[Column]) -> usize {
    columns.iter().map(|column| column.width + GAP).sum()
}
