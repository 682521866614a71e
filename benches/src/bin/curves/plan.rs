//! The points of each curve, and the workload of each point.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The quantity that grows along a curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// Threads that allocate at the same time; all pairs and all live blocks are divided among
    /// them.
    Threads,
    /// Frames of a stack.
    Frames,
    /// Distinct stacks.
    Stacks,
    /// Live blocks.
    Live,
}

/// The tool around a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// No tool.
    Base,
    /// `aggregator run`, exact, 64 frames.
    Heapline,
    /// `aggregator run`, exact, all frames kept.
    HeaplineAllFrames,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Curve of the point.
    pub curve: Curve,
    /// Position on the curve.
    pub x: u64,
    quick: bool,
}

/// Number of churn's frames outside of the recursion.
const CHURN_FRAMES: u64 = 7;
/// Number of live blocks on curves where another quantity grows.
const CHURN_LIVE: u64 = 10_240;
const STACKS_LIVE: u64 = 1_000_000;
const LIVE_STACKS: u64 = 1000;

impl Curve {
    pub const ALL: [Curve; 4] = [Curve::Threads, Curve::Frames, Curve::Stacks, Curve::Live];

    /// Returns the tools for each point, in the order of runs.
    pub fn tools(self) -> &'static [Tool] {
        match self {
            Curve::Frames => &[Tool::Base, Tool::Heapline, Tool::HeaplineAllFrames],
            _ => &[Tool::Base, Tool::Heapline],
        }
    }

    fn points(self, quick: bool) -> &'static [u64] {
        match self {
            Curve::Threads => &[1, 2, 4, 8, 32, 256],
            Curve::Frames => &[10, 30, 64, 100, 300, 1000],
            Curve::Stacks if quick => &[10, 100, 1000, 10_000, 100_000],
            Curve::Stacks => &[10, 100, 1000, 10_000, 100_000, 1_000_000],
            Curve::Live if quick => &[10_000, 100_000, 1_000_000],
            Curve::Live => &[10_000, 100_000, 1_000_000, 10_000_000, 50_000_000],
        }
    }
}

impl Point {
    pub fn all(curve: Curve, quick: bool) -> impl Iterator<Item = Point> {
        curve.points(quick).iter().map(move |&x| Point { curve, x, quick })
    }

    /// Returns the program and the arguments.
    pub fn command(&self) -> (&'static str, Vec<u64>) {
        let shorter = if self.quick { 8 } else { 1 };
        let x = self.x;
        match self.curve {
            Curve::Threads => ("churn", vec![x, 8_000_000 / x / shorter, 10, CHURN_LIVE / x]),
            Curve::Frames => ("churn", vec![1, 200_000_000 / (x + 15) / shorter, x - CHURN_FRAMES, CHURN_LIVE]),
            Curve::Stacks => ("scale", vec![x, STACKS_LIVE, 2_000_000 / shorter]),
            Curve::Live => ("scale", vec![LIVE_STACKS, x, 2_000_000 / shorter]),
        }
    }

    /// Returns a generous limit for the memory of target, aggregator and report together.
    pub fn needs_bytes(&self) -> u64 {
        match self.curve {
            Curve::Live => self.x * 200,
            Curve::Stacks => STACKS_LIVE * 200 + self.x * 1000,
            _ => 0,
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.curve {
            Curve::Threads => "threads",
            Curve::Frames => "frames",
            Curve::Stacks => "distinct stacks",
            Curve::Live => "live blocks",
        };
        write!(f, "{} {what}", self.x)
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tool::Base => "base",
            Tool::Heapline => "heapline",
            Tool::HeaplineAllFrames => "heapline-all-frames",
        })
    }
}
