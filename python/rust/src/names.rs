//! Strings, frames and tracebacks of a snapshot, in Rust and in Python.

use heapline_tools::frames::{Frame, StringId, TracebackId, Tracebacks};
use heapline_tools::query::statistics::{Key, Statistic};
use heapline_tools::symbols::Symbolizer;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use std::collections::HashMap;

/// Names of a snapshot's stacks: the symbolizer, and the names found so far.
///
/// A mutex protects the value. A thread waiting for the interpreter's lock must not hold the mutex.
/// So Python objects visible to the garbage collector are made after the mutex is released.
pub struct Names {
    pub tracebacks: Tracebacks,
    pub symbolizer: Symbolizer,
    /// Python strings made so far. Each text becomes a Python string once.
    strings: HashMap<StringId, Py<PyString>>,
}

/// A frame for Python: file, line, and a function where there is a useful one.
pub type Place = (Py<PyString>, u32, Option<Py<PyString>>);

impl Names {
    pub fn new(symbolizer: Symbolizer) -> Names {
        Names { tracebacks: Tracebacks::default(), symbolizer, strings: HashMap::new() }
    }

    /// Returns a text as a Python string.
    pub fn string(&mut self, py: Python<'_>, id: StringId) -> Py<PyString> {
        let text = || PyString::new(py, self.tracebacks.text(id)).unbind();
        self.strings.entry(id).or_insert_with(text).clone_ref(py)
    }

    /// Returns the frames of a traceback, the most recent first.
    pub fn places(&mut self, py: Python<'_>, id: TracebackId) -> Vec<Place> {
        let frames: Vec<Frame> = self.tracebacks.frames(id).collect();
        frames.into_iter().map(|frame| self.place(py, frame)).collect()
    }

    /// Returns the place of a group in tracemalloc's form: a frame, or a traceback with the most
    /// recent frame first.
    pub fn places_of_group(&mut self, py: Python<'_>, group: &Statistic) -> Vec<Place> {
        match group.key {
            Key::Traceback(id) => self.places(py, id),
            Key::Line(..) | Key::Symbol(..) if !group.several_functions => vec![self.place(py, group.frame)],
            Key::Line(filename, lineno) => vec![(self.string(py, filename), lineno, None)],
            Key::Symbol(module, function) => vec![(self.string(py, module), 0, Some(self.string(py, function)))],
            Key::Text(filename) => vec![(self.string(py, filename), 0, None)],
            Key::Size(_) | Key::Age(_) => Vec::new(),
        }
    }

    fn place(&mut self, py: Python<'_>, frame: Frame) -> Place {
        (self.string(py, frame.filename), frame.lineno, Some(self.string(py, frame.function)))
    }
}

/// Returns two tuples of equal length: (file, line) of each frame, in tracemalloc's form, and the
/// functions.
pub fn tuples<'py>(py: Python<'py>, places: Vec<Place>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyTuple>)> {
    let functions: Vec<Option<Py<PyString>>> =
        places.iter().map(|place| place.2.as_ref().map(|name| name.clone_ref(py))).collect();
    let frames: Vec<(Py<PyString>, u32)> = places.into_iter().map(|(file, line, _)| (file, line)).collect();
    Ok((PyTuple::new(py, frames)?, PyTuple::new(py, functions)?))
}

/// Translates groups of a snapshot to the names of another snapshot, so that equal keys become
/// equal numbers.
pub struct Translation<'n> {
    pub from: &'n Tracebacks,
    pub into: &'n mut Tracebacks,
    strings: HashMap<StringId, StringId>,
    tracebacks: HashMap<TracebackId, TracebackId>,
}

impl<'n> Translation<'n> {
    pub fn new(from: &'n Tracebacks, into: &'n mut Tracebacks) -> Translation<'n> {
        Translation { from, into, strings: HashMap::new(), tracebacks: HashMap::new() }
    }

    pub fn group(&mut self, mut group: Statistic) -> Statistic {
        group.key = match group.key {
            Key::Text(text) => Key::Text(self.string(text)),
            Key::Line(filename, lineno) => Key::Line(self.string(filename), lineno),
            Key::Symbol(module, function) => Key::Symbol(self.string(module), self.string(function)),
            Key::Traceback(id) => {
                let id = self.traceback(id);
                Key::Traceback(self.into.alike(id))
            }
            key @ (Key::Size(_) | Key::Age(_)) => key,
        };
        group.frame = self.frame(group.frame);
        group
    }

    fn string(&mut self, id: StringId) -> StringId {
        *self.strings.entry(id).or_insert_with(|| self.into.string(self.from.text(id)))
    }

    fn frame(&mut self, frame: Frame) -> Frame {
        let Frame { filename, function, module, .. } = frame;
        let (filename, function, module) = (self.string(filename), self.string(function), self.string(module));
        Frame { filename, function, module, ..frame }
    }

    /// Adds a traceback, from the oldest unknown frame on.
    fn traceback(&mut self, id: TracebackId) -> TracebackId {
        let mut unknown = Vec::new();
        let mut next = Some(id);
        let mut known = None;
        while let Some(id) = next {
            if let Some(&there) = self.tracebacks.get(&id) {
                known = Some(there);
                break;
            }
            unknown.push(id);
            next = self.from.older(id);
        }
        for id in unknown.into_iter().rev() {
            let frame = self.frame(self.from.most_recent(id));
            let there = self.into.push(known, frame);
            self.tracebacks.insert(id, there);
            known = Some(there);
        }
        known.expect("a traceback has a frame")
    }
}
