//! Events at instants: marks of the user, and what was done to the trace.

use heapline_shared_format::snapshot::history::{Mark, USER_MARK};
use std::collections::VecDeque;

/// Most marks of the user, and most other marks. Older marks are given up: a build with thousands
/// of forks takes none of the user's.
const MOST: usize = 1024;
/// Longest text, in bytes.
const LONGEST: usize = 256;

/// Marks of a history.
#[derive(Debug, Default)]
pub struct Marks {
    user: VecDeque<Mark>,
    others: VecDeque<Mark>,
}

impl Marks {
    /// Adds a mark at a time that is not before the last mark's.
    pub fn add(&mut self, at: u64, kind: &str, text: &str) {
        let list = if kind == USER_MARK { &mut self.user } else { &mut self.others };
        list.push_back(Mark { at, kind: kind.to_owned(), text: shortened(text).to_owned() });
        if list.len() > MOST {
            list.pop_front();
        }
    }

    /// Returns the marks, by rising time.
    pub fn list(&self) -> Vec<Mark> {
        let mut all: Vec<Mark> = self.others.iter().chain(&self.user).cloned().collect();
        all.sort_by_key(|mark| mark.at);
        all
    }
}

/// Returns the beginning of a long text.
fn shortened(text: &str) -> &str {
    let end = (0..=LONGEST.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_marks_go_but_not_for_marks_of_another_kind() {
        let mut marks = Marks::default();
        marks.add(5, USER_MARK, "deploy");
        (6..3000).for_each(|at| marks.add(at, "fork", "process 7"));
        let list = marks.list();
        assert_eq!((list.len(), list[0].text.as_str(), list[1].at), (1 + MOST, "deploy", 3000 - MOST as u64));
        marks.add(3000, USER_MARK, &"\u{e9}".repeat(200));
        assert_eq!(marks.list().last().map(|mark| mark.text.len()), Some(LONGEST));
        assert_eq!(shortened(&format!("a{}", "\u{e9}".repeat(200))).len(), LONGEST - 1);
    }
}
