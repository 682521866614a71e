//! Memory requested by a program's own lines through Rust's library. All memory is kept.
use std::collections::HashMap;

fn main() {
    let mut numbers: Vec<u64> = Vec::new();
    for number in 0..10_000 {
        numbers.push(number); // LINE push
    }
    let mut names: HashMap<u64, [u8; 1000]> = HashMap::new();
    for &number in numbers.iter().take(100) {
        names.insert(number, [1; 1000]); // LINE insert
    }
    let text = "x".repeat(300_000); // LINE repeat
    let boxed: Box<[u8]> = vec![0; 200_000].into_boxed_slice(); // LINE boxed
    std::mem::forget((numbers, names, text, boxed));
}
