//! The points of each curve, and what runs for them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// Threads that allocate at the same time; all pairs and all live blocks are divided among them.
    Threads,
    /// Frames of a stack.
    Frames,
    /// Distinct stacks.
    Stacks,
    /// Live blocks.
    Live,
}

/// With what a workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// Nothing.
    Base,
    /// `aggregator run`, exact, 64 frames.
    Heapline,
    /// The same with as many frames as there are.
    HeaplineAllFrames,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Of which.
    pub curve: Curve,
    /// Where.
    pub x: u64,
    quick: bool,
}

/// Frames of churn below its recursion and above it.
const CHURN_FRAMES: u64 = 7;
/// Blocks that live where something else grows.
const CHURN_LIVE: u64 = 10_240;
const STACKS_LIVE: u64 = 1_000_000;
const LIVE_STACKS: u64 = 1000;

impl Curve {
    pub const ALL: [Curve; 4] = [Curve::Threads, Curve::Frames, Curve::Stacks, Curve::Live];

    /// What a point is run with, in this order.
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

    /// Program and arguments.
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

    /// Memory of target, aggregator and report together, generously.
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
