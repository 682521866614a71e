//! Merges the native and the Python traceback of one moment: Python frames stand in the place of
//! the interpreter's loop.
//!
//! - A native frame of the loop (`_PyEval_EvalFrameDefault`) runs a Python frame called by C, and
//!   all further Python frames reached without C in between. The snapshot marks Python frames
//!   called by C.
//! - Both tracebacks are walked from the most recent frame on, so a missing old end of either does
//!   no harm.
//! - Other functions of the interpreter only lead from loop to loop and are left out. Python frames
//!   and the C frames of other modules remain.

use super::{Frame, TracebackId, Tracebacks};
use clap::ValueEnum;

/// Kinds of frames in the traceback of a process with Python code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Frames {
    /// Python's, and the native ones of others than the interpreter.
    Mixed,
    /// Native ones only.
    Native,
    /// Python's only.
    Python,
}

/// A physical native frame with the functions inlined there.
pub struct Native<'f> {
    /// The function and the inlined functions, the oldest first.
    pub frames: &'f [Frame],
    /// Whether the frame is the interpreter's loop.
    pub is_loop: bool,
    /// Whether the frame belongs to the interpreter's file.
    pub is_interpreter: bool,
}

/// A Python frame.
pub struct Python {
    /// The frame of the Python function.
    pub frame: Frame,
    /// Whether C code called the function.
    pub is_entry: bool,
}

/// Most frames of a traceback in a merge. Merged tracebacks may have no frames in common, so their
/// length is bounded.
const MOST: usize = 4096;

/// Merges the frames of both tracebacks, the most recent first. `raw` keeps the interpreter's own
/// frames.
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
    // The native walk ended before the Python walk.
    merged.extend(python.map(|python| python.frame));
    merged
}

/// Stores a traceback; `frames` begins with the most recent frame. Returns none for no frames.
pub fn push(tracebacks: &mut Tracebacks, frames: &[Frame]) -> Option<TracebackId> {
    frames.iter().rev().fold(None, |older, &frame| Some(tracebacks.push(older, frame)))
}

/// Whether a function is the interpreter's loop, or a part of the loop split off by the compiler.
pub fn is_loop(function: &str) -> bool {
    function.strip_prefix("_PyEval_EvalFrameDefault").is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::super::Left;
    use super::super::Part;
    use super::*;

    /// A store of frames with different lines.
    struct Scene(Tracebacks);

    impl Scene {
        fn frame(&mut self, lineno: u32) -> Frame {
            let name = self.0.string("f");
            Frame {
                filename: name,
                lineno,
                function: name,
                module: name,
                address: 0,
                part: Part::Asks,
                left: Left::Tables,
            }
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
