//! Shortens names to a number of columns.
//!
//! | Text | Keeps |
//! | --- | --- |
//! | path | the file name, and as many folders at both ends as fit |
//! | function | the last name; template arguments are folded first, the innermost before others |
//! | sentence | all words: lines are wrapped |
//!
//! All texts are free of control characters ([`heapline_shared_format::text::printable`]).

use std::borrow::Cow;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Mark in the place of left out text.
const GAP: &str = "...";

/// Returns the number of columns of a text on a terminal.
pub(super) fn columns(text: &str) -> usize {
    text.width()
}

/// Returns the beginning of `text` in at most `most` columns, cut between words if possible.
pub(super) fn beginning(text: &str, most: usize) -> Cow<'_, str> {
    if columns(text) <= most {
        return text.into();
    }
    let kept = first(text, most.saturating_sub(GAP.len()));
    let word = kept.rfind(' ').filter(|&end| end * 2 >= kept.len()).map_or(kept, |end| kept[..end].trim_end());
    format!("{word}{}", first(GAP, most)).into()
}

/// Returns `path` in at most `most` columns, or in up to `room` columns if the file name needs
/// them.
pub(super) fn place(path: &str, most: usize, room: usize) -> Cow<'_, str> {
    let short = self::path(path, most);
    let file = path.rsplit('/').next().unwrap_or(path);
    if short.ends_with(file) { short } else { self::path(path, room) }
}

/// Returns `path` in at most `most` columns. The file name, with a line number behind the name, is
/// cut only if the name alone is wider.
pub(super) fn path(path: &str, most: usize) -> Cow<'_, str> {
    if columns(path) <= most {
        return path.into();
    }
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    if columns(name) > most {
        return middle(name, most).into();
    }
    let root = folders.len() - folders.trim_start_matches('/').len();
    let mut folders: Vec<&str> = folders[root..].split('/').collect();
    let first = &path[..root + folders[0].len()];
    folders[0] = first;
    let shortened = |head: usize, tail: usize| {
        let parts = folders[..head].iter().chain([&GAP]).chain(&folders[folders.len() - tail..]).chain([&name]);
        parts.copied().collect::<Vec<_>>().join("/")
    };
    let fits = |head: usize, tail: usize| head + tail < folders.len() && columns(&shortened(head, tail)) <= most;
    let (mut head, mut tail) = (0, 0);
    if !fits(head, tail) {
        return name.into();
    }
    loop {
        // Folders near the file say more than the first folders.
        let more = (fits(head, tail + 1), fits(head + 1, tail));
        match more {
            (true, _) if tail <= head || !more.1 => tail += 1,
            (_, true) => head += 1,
            _ => return shortened(head, tail).into(),
        }
    }
}

/// Returns `name` without the middle, in at most `most` columns.
fn middle(name: &str, most: usize) -> String {
    let rest = most.saturating_sub(GAP.len());
    let tail = last(name, rest - rest / 3);
    format!("{}{}{tail}", first(name, rest / 3), first(GAP, most))
}

/// Returns the name of a function in at most `most` columns.
///
/// 1. Template arguments are folded to `<>`, the innermost first.
/// 2. The first names of the path are left out.
/// 3. The end of the last name is cut.
pub(super) fn function(name: &str, most: usize) -> Cow<'_, str> {
    if columns(name) <= most {
        return name.into();
    }
    let depths = depths(name);
    let deepest = depths.iter().copied().max().unwrap_or(0);
    let mut folded = name.to_owned();
    for depth in (0..deepest).rev() {
        let kept = name.chars().zip(&depths).filter(|(_, at)| **at <= depth).map(|(c, _)| c);
        folded = kept.collect();
        if columns(&folded) <= most {
            return folded.into();
        }
    }
    let separator = if folded.contains("::") { "::" } else { "." };
    let mut rest = &folded[..];
    while let Some(end) = outer(rest, separator) {
        rest = &rest[end..];
        let shortened = format!("{GAP}{}{rest}", if separator == "::" { separator } else { "" });
        if columns(&shortened) <= most {
            return shortened.into();
        }
    }
    beginning(rest, most).into_owned().into()
}

/// Returns the depth of each character in angle brackets that hold arguments. The brackets have the
/// depth of the text around them.
///
/// Other brackets are text: Rust's `<Type as Trait>`, Python's `<lambda>`, operators, `->`.
fn depths(name: &str) -> Vec<usize> {
    let (mut depths, mut depth) = (Vec::new(), 0);
    let mut before = "";
    for (at, c) in name.char_indices() {
        let follows_name = before.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == ':');
        let is_operator = before.ends_with("operator") || before.ends_with("operator<");
        let opens = c == '<' && (depth > 0 || (follows_name && !is_operator));
        let closes = c == '>' && depth > 0 && !before.ends_with('-');
        depth -= usize::from(closes);
        depths.push(depth);
        depth += usize::from(opens);
        before = &name[..at + c.len_utf8()];
    }
    depths
}

/// Returns the position behind the first `separator` outside of all brackets.
fn outer(name: &str, separator: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in name.char_indices() {
        match c {
            '<' | '(' | '{' | '[' => depth += 1,
            '>' | ')' | '}' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 && name[at..].starts_with(separator) => return Some(at + separator.len()),
            _ => {}
        }
    }
    None
}

/// Returns a command in at most `most` columns: without the folders of the program, and without the
/// last words, if too wide.
pub(super) fn command(command: &str, most: usize) -> Cow<'_, str> {
    if columns(command) <= most {
        return command.into();
    }
    let program = command.split(' ').next().unwrap_or("");
    beginning(&command[program.rfind('/').map_or(0, |end| end + 1)..], most)
}

/// Breaks a sentence into lines of at most `most` columns, between words. A wider word, such as a
/// path, is shortened. A unit stays with its number. All lines have the indent of the first.
pub(super) fn wrapped(text: &str, most: usize) -> Vec<String> {
    let words = text.trim_start_matches(' ');
    let indent = (text.len() - words.len()).min(most / 2);
    let mut lines = vec![" ".repeat(indent)];
    let mut rest = words.split(' ').peekable();
    while let Some(word) = rest.next() {
        let word = match rest.next_if(|next| is_unit(next)) {
            Some(unit) => format!("{word} {unit}"),
            None => word.to_owned(),
        };
        let word = path(&word, most - indent);
        let line = lines.last_mut().expect("there is a line");
        if line.len() == indent {
            line.push_str(&word);
        } else if columns(line) + 1 + columns(&word) <= most {
            line.push(' ');
            line.push_str(&word);
        } else {
            lines.push(format!("{:indent$}{word}", ""));
        }
    }
    lines
}

/// Whether a word is a unit behind a number, perhaps with a mark behind the unit.
fn is_unit(word: &str) -> bool {
    matches!(word.trim_end_matches([',', ';', ')', ':']), "B" | "KiB" | "MiB" | "GiB" | "TiB" | "%")
}

/// Returns the longest beginning of `text` in at most `most` columns.
fn first(text: &str, most: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, c)| {
        used += c.width().unwrap_or(0);
        used > most
    });
    let kept = end.map_or(text, |(end, _)| &text[..end]);
    // A sequence of characters may be wider than the sum of its characters.
    if columns(kept) <= most { kept } else { "" }
}

/// Returns the longest end of `text` in at most `most` columns.
fn last(text: &str, most: usize) -> &str {
    let mut used = 0;
    let begin = text.char_indices().rev().find(|(_, c)| {
        used += c.width().unwrap_or(0);
        used > most
    });
    let kept = begin.map_or(text, |(at, c)| &text[at + c.len_utf8()..]);
    if columns(kept) <= most { kept } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_shortened_in_the_middle() {
        let long = "/usr/include/c++/12/bits/stl_vector.h:395";
        for (most, short) in [
            (41, long),
            (40, "/usr/.../c++/12/bits/stl_vector.h:395"),
            (36, "/usr/.../12/bits/stl_vector.h:395"),
            (30, "/usr/.../bits/stl_vector.h:395"),
            (29, ".../12/bits/stl_vector.h:395"),
            (27, ".../bits/stl_vector.h:395"),
            (20, ".../stl_vector.h:395"),
            (19, "stl_vector.h:395"),
            (16, "stl_vector.h:395"),
            (10, "st...h:395"),
        ] {
            assert_eq!(path(long, most), short, "{most}");
        }
        assert_eq!(path("a/b/cc/d.c", 9), "a/.../d.c");
        assert_eq!(path("/a", 1), "a");
        assert_eq!(path("<frozen importlib._bootstrap>:241", 20), "<froz...otstrap>:241");
    }

    #[test]
    fn arguments_are_folded_from_the_inside() {
        let push = "std::vector<std::pair<int, int>, std::allocator<std::pair<int, int> > >::push_back";
        for (most, short) in [
            (100, push),
            (60, "std::vector<std::pair<>, std::allocator<> >::push_back"),
            (30, "std::vector<>::push_back"),
            (20, "...::push_back"),
            (8, "push_..."),
        ] {
            assert_eq!(function(push, most), short, "{most}");
        }
        for (name, most, short) in [
            (
                "<alloc::vec::Vec<u8> as core::clone::Clone>::clone",
                49,
                "<alloc::vec::Vec<> as core::clone::Clone>::clone",
            ),
            ("<alloc::vec::Vec<u8> as core::clone::Clone>::clone", 20, "...::clone"),
            ("call<fn(u8) -> u8, Box<u8>>::run", 20, "call<>::run"),
            ("std::operator<< <char, int>", 20, "operator<<..."),
            ("read.<locals>.<listcomp>", 20, "...<listcomp>"),
            ("(anonymous namespace)::f<int>", 25, "...::f<>"),
            ("a_function_of_c_with_a_long_name", 20, "a_function_of_c_w..."),
        ] {
            assert_eq!(function(name, most), short, "{name}");
        }
        assert_eq!(function("keep<1>", 20), "keep<1>", "what fits stays");
    }

    #[test]
    fn sentences_are_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("peak 10 KiB (20 B)", 8), ["peak", "10 KiB", "(20 B)"]);
        assert_eq!(wrapped("see /usr/lib/debug/file.so now", 12), ["see", ".../file.so", "now"]);
        assert_eq!(beginning("python3 -m http.server 8000", 20), "python3 -m...");
        assert_eq!(beginning("abcdefghij", 5), "ab...");
        assert_eq!(command("/usr/bin/python3 -m http.server", 23), "python3 -m http.server");
        assert_eq!(command("/usr/bin/python3 -m http.server", 15), "python3 -m...");
    }

    /// Names with folders, brackets, separators, wide characters and characters without a width.
    fn names() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("::".to_owned()),
            Just("/".to_owned()),
            Just("<".to_owned()),
            Just(">".to_owned()),
            Just("operator".to_owned()),
            "[a-z_]{1,9}",
            "[. (){}\\-]",
            "[\u{e0}\u{3042}\u{300}\u{1f600}\u{200d}]{1,3}",
        ];
        proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_asked_for(name in names(), most in 0..90_usize) {
            for (what, text) in [
                ("path", path(&name, most)),
                ("function", function(&name, most)),
                ("beginning", beginning(&name, most)),
                ("command", command(&name, most)),
            ] {
                prop_assert!(columns(&text) <= most, "{what}: {text:?} has {} columns", columns(&text));
            }
            for line in wrapped(&name, most) {
                prop_assert!(columns(&line) <= most, "{line:?}");
            }
        }

        #[test]
        fn a_path_keeps_its_file_name(folders in names(), file in "[a-z]{1,20}\\.[ch]:[0-9]{1,4}", most in 27..90_usize) {
            let name = format!("{folders}/{file}");
            let short = path(&name, most);
            prop_assert!(short.ends_with(&file), "{short}");
        }

        #[test]
        fn what_fits_stays(name in names()) {
            let most = columns(&name);
            prop_assert_eq!(path(&name, most), &name[..]);
            prop_assert_eq!(function(&name, most), &name[..]);
        }

        #[test]
        fn wrapped_words_are_all_there(words in proptest::collection::vec("[a-z]{1,9}", 1..30), most in 9..60_usize) {
            prop_assert_eq!(wrapped(&words.join(" "), most).join(" "), words.join(" "));
        }
    }
}
