//! Cost of `Traced`: nanoseconds for a pair of `alloc` and `dealloc`, with and without `Traced`,
//! under a number of frames.
//!
//! - Alone, the program shows the cost of the idle wrapper.
//! - With an aggregator (`--attach`, or `run` of a static build), the program shows the cost of
//!   tracing. A second argument makes the program wait for a line first.

use heapline_collector::Traced;
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::time::{Duration, Instant};

static TRACED: Traced<System> = Traced::new(System);
const PAIRS: u32 = 250_000;
const ROUNDS: usize = 60;

/// Calls `work` under `depth` frames.
#[inline(never)]
fn under(depth: u32, work: &mut dyn FnMut()) {
    match depth {
        0 => work(),
        _ => under(depth - 1, work),
    }
    black_box(depth);
}

fn pairs(allocator: &impl GlobalAlloc, depth: u32) -> Duration {
    let begun = Instant::now();
    under(depth, &mut || {
        for i in 0..PAIRS {
            let layout = Layout::from_size_align(16 + (i as usize % 16) * 16, 8).expect("sound");
            // SAFETY: the size is not 0, and the block is freed with its layout.
            unsafe { allocator.dealloc(black_box(allocator.alloc(layout)), layout) };
        }
    });
    begun.elapsed()
}

/// Returns the nanoseconds of a pair in the best of many short rounds. Other programs on the
/// machine only ever add time.
fn best(measure: impl Fn() -> Duration) -> f64 {
    let best = (0..ROUNDS).map(|_| measure()).min().unwrap_or_default();
    best.as_secs_f64() * 1e9 / f64::from(PAIRS)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let depth = arguments.next().and_then(|depth| depth.parse().ok()).unwrap_or(10);
    if arguments.next().is_some() {
        std::io::stdin().read_line(&mut String::new()).expect("standard input");
    }
    let alone = best(|| pairs(&System, depth));
    let wrapped = best(|| pairs(&TRACED, depth));
    println!("{depth} frames: System {alone:.1} ns a pair, Traced<System> {wrapped:.1} ns: {:+.1} ns", wrapped - alone);
}
