//! Native and Python tracebacks of the same moment, as one: Python's frames stand where the interpreter's loop stood.
//!
//! A native frame of the loop (`_PyEval_EvalFrameDefault`) runs one Python frame that C called, and all that this one calls
//! without C in between; the snapshot says which Python frames C called. Both are gone through from the most recent frame on,
//! so that what is missing at the old end of either does no harm. The interpreter's other functions, which only lead from one
//! loop to the next, are left out with it; what remains is Python and the C code of others.

use super::{Frame, TracebackId, Tracebacks};
use clap::ValueEnum;

/// Which frames a traceback shows where a process runs Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Frames {
    /// Python's, and the native ones of others than the interpreter.
    Mixed,
    /// Native ones only.
    Native,
    /// Python's only.
    Python,
}

/// A physical native frame with what was inlined there, the oldest first.
pub struct Native<'f> {
    /// Its frames.
    pub frames: &'f [Frame],
    /// It is the interpreter's loop.
    pub is_loop: bool,
    /// It belongs to the interpreter's file.
    pub is_interpreter: bool,
}

/// A Python frame.
pub struct Python {
    /// The frame.
    pub frame: Frame,
    /// C called it.
    pub is_entry: bool,
}

/// Most frames of either that are gone through: no two merged tracebacks need have anything in common.
const MOST: usize = 4096;

/// The frames of both, the most recent first. With `raw` the interpreter's own stay.
pub fn merge(native: &[Native<'_>], python: &[Python], raw: bool) -> Vec<Frame> {
    let (native, python) = (&native[..native.len().min(MOST)], &python[..python.len().min(MOST)]);
    let mut merged = Vec::with_capacity(native.len() + python.len());
    let mut python = python.iter();
    for physical in native {
        if physical.is_loop {
            for Python { frame, is_entry } in python.by_ref() {
                merged.push(*frame);
                if *is_entry {
                    break;
                }
            }
        }
        if raw || !physical.is_interpreter {
            merged.extend(physical.frames.iter().rev());
        }
    }
    // The native walk ended before Python's.
    merged.extend(python.map(|python| python.frame));
    merged
}

/// The traceback of frames, the most recent first; none for none.
pub fn push(tracebacks: &mut Tracebacks, frames: &[Frame]) -> Option<TracebackId> {
    frames.iter().rev().fold(None, |older, &frame| Some(tracebacks.push(older, frame)))
}

/// Whether a function is the interpreter's loop, or a part of it that the compiler has split off.
pub fn is_loop(function: &str) -> bool {
    function.strip_prefix("_PyEval_EvalFrameDefault").is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::super::plumbing::Part;
    use super::*;

    /// Frames that are told apart by their lines.
    struct Scene(Tracebacks);

    impl Scene {
        fn frame(&mut self, lineno: u32) -> Frame {
            let name = self.0.string("f");
            Frame { filename: name, lineno, function: name, module: name, address: 0, part: Part::Asks }
        }
    }

    fn lines(frames: &[Frame]) -> Vec<u32> {
        frames.iter().map(|frame| frame.lineno).collect()
    }

    #[test]
    fn each_loop_is_what_it_ran() {
        let mut scene = Scene(Tracebacks::default());
        let native: Vec<Frame> = (1..=6).map(|line| scene.frame(line)).collect();
        let python: Vec<Frame> = (11..=14).map(|line| scene.frame(line)).collect();
        let native = |loops: &[u32]| -> Vec<Native<'_>> {
            let is_loop = |frame: &Frame| loops.contains(&frame.lineno);
            let physical = |frame| Native {
                frames: std::slice::from_ref(frame),
                is_loop: is_loop(frame),
                is_interpreter: is_loop(frame) || frame.lineno == 3,
            };
            native.iter().map(physical).collect()
        };
        let python = |entries: &[u32]| -> Vec<Python> {
            python.iter().map(|&frame| Python { frame, is_entry: entries.contains(&frame.lineno) }).collect()
        };
        let merged = |loops: &[u32], entries: &[u32], raw| lines(&merge(&native(loops), &python(entries), raw));
        assert_eq!(merged(&[2, 5], &[12, 14], false), [1, 11, 12, 4, 13, 14, 6]);
        assert_eq!(merged(&[2, 5], &[12, 14], true), [1, 11, 12, 2, 3, 4, 13, 14, 5, 6]);
        assert_eq!(merged(&[2], &[12, 14], false), [1, 11, 12, 4, 5, 6, 13, 14], "the native walk ended early");
        assert_eq!(merged(&[1, 2, 5], &[14], false), [11, 12, 13, 14, 4, 6], "loops that ran nothing that is told");
    }

    #[test]
    fn parts_of_the_loop_are_the_loop() {
        assert!(is_loop("_PyEval_EvalFrameDefault") && is_loop("_PyEval_EvalFrameDefault.cold"));
        assert!(!is_loop("_PyEval_EvalFrame") && !is_loop("_PyEval_EvalFrameDefaults"));
    }
}
