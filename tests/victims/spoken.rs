//! A Rust program that calls Heapline by the crate `heapline`: a mark, a pool, a pause.

use std::hint::black_box;

fn main() {
    let arena = vec![0u8; 10_000];
    for i in 0..5 {
        heapline::track("rows", &raw const arena[i * 1000], 10 * (i + 1));
    }
    heapline::untrack("rows", &raw const arena[0]);
    heapline::mark("from Rust");
    let paused = {
        let _pause = heapline::pause();
        black_box(vec![1u8; 70_000])
    };
    let counted = black_box(vec![1u8; 6_000]);
    println!("{}", arena.len() + paused.len() + counted.len());
}
