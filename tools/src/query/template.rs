//! Patterns of functions, files and modules, in the form of LeakSanitizer's suppressions.
//!
//! | Pattern | Matches a name that |
//! | --- | --- |
//! | `text` | contains the text |
//! | `a*b` | contains `a`, and `b` somewhere behind |
//! | `^text` | begins with the text |
//! | `text$` | ends with the text |
//!
//! Case counts. A pattern matches a frame if it matches the function, the source file or the
//! module.

use crate::frames::{Frame, StringId, TracebackId, Tracebacks};
use std::collections::HashMap;
use std::fmt::{self, Display};
use std::str::FromStr;

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    /// Texts that follow each other in a name.
    parts: Vec<String>,
    is_at_begin: bool,
    is_at_end: bool,
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Template, String> {
        let (body, is_at_begin) = text.strip_prefix('^').map_or((text, false), |body| (body, true));
        let (body, is_at_end) = body.strip_suffix('$').map_or((body, false), |body| (body, true));
        if body.is_empty() {
            return Err("the pattern is empty; use a part of a function, file or module".to_owned());
        }
        let parts = body.split('*').map(str::to_owned).collect();
        Ok(Template { text: text.to_owned(), parts, is_at_begin, is_at_end })
    }
}

impl Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Template {
    /// Whether the pattern matches a name.
    pub fn matches(&self, name: &str) -> bool {
        let mut rest = name;
        let (last, first) = match self.parts.split_last() {
            Some((last, first)) if self.is_at_end => (Some(last), first),
            _ => (None, &self.parts[..]),
        };
        for (index, part) in first.iter().enumerate() {
            let found = match index == 0 && self.is_at_begin {
                true => rest.strip_prefix(part.as_str()),
                false => rest.find(part.as_str()).map(|at| &rest[at + part.len()..]),
            };
            let Some(behind) = found else { return false };
            rest = behind;
        }
        match last {
            None => true,
            Some(last) if first.is_empty() && self.is_at_begin => rest == last,
            Some(last) => rest.ends_with(last.as_str()),
        }
    }
}

/// Search for frames that match any of several patterns. Looks at each name and each traceback
/// once.
pub struct Search<'t> {
    templates: &'t [Template],
    names: HashMap<StringId, Option<usize>>,
    tracebacks: HashMap<TracebackId, Option<usize>>,
}

impl<'t> Search<'t> {
    /// Makes a search.
    pub fn new(templates: &'t [Template]) -> Search<'t> {
        Search { templates, names: HashMap::new(), tracebacks: HashMap::new() }
    }

    /// Index of the first pattern that matches a frame.
    pub fn in_frame(&mut self, tracebacks: &Tracebacks, frame: &Frame) -> Option<usize> {
        let names = [frame.function, frame.filename, frame.module];
        let found = names.map(|name| {
            let first = || self.templates.iter().position(|template| template.matches(tracebacks.text(name)));
            *self.names.entry(name).or_insert_with(first)
        });
        found.into_iter().flatten().min()
    }

    /// Index of the first pattern that matches any frame of a traceback.
    pub fn in_traceback(&mut self, tracebacks: &Tracebacks, id: TracebackId) -> Option<usize> {
        let mut unknown = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next.filter(|id| !self.tracebacks.contains_key(id)) {
            unknown.push(id);
            next = tracebacks.older(id);
        }
        let mut found = next.and_then(|id| self.tracebacks[&id]);
        for id in unknown.into_iter().rev() {
            let own = self.in_frame(tracebacks, &tracebacks.most_recent(id));
            found = [own, found].into_iter().flatten().min();
            self.tracebacks.insert(id, found);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_leak_sanitizer() {
        for (pattern, name, expected) in [
            ("cache", "my_cache_add", true),
            ("cache", "Cache", false),
            ("^cache", "my_cache_add", false),
            ("^cache", "cache_add", true),
            ("add$", "cache_add", true),
            ("add$", "cache_add_all", false),
            ("a$", "aba", true),
            ("^a$", "aba", false),
            ("^aba$", "aba", true),
            ("^c*add$", "cache_add", true),
            ("^c*add$", "cache_add_all", false),
            ("c*add*all", "cache_add_all", true),
            ("add*cache", "cache_add", false),
            ("*", "anything", true),
            ("*cache", "my_cache_add", true),
            ("^*cache", "my_cache_add", true),
            ("cache*$", "my_cache_add", true),
            ("libfoo.so", "/usr/lib/libfoo.so.1", true),
        ] {
            let template: Template = pattern.parse().expect(pattern);
            assert_eq!(template.matches(name), expected, "{pattern} {name}");
            assert_eq!(template.to_string(), pattern);
        }
        for nothing in ["", "^", "$", "^$"] {
            assert!(nothing.parse::<Template>().is_err(), "{nothing:?}");
        }
    }
}
