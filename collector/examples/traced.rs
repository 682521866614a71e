//! A program with its own allocator, traced all the same: dynamic or static.
//!
//! ```sh
//! cargo build --release -p heapline-collector --example traced
//! aggregator run -o traced.snap.zst -- target/release/examples/traced
//! ```
//!
//! The program prints the contents of its heap at the end. With `wait` as the first argument, the
//! program first waits for a line on standard input, so that an aggregator can attach.

use heapline_collector::Traced;
use std::alloc::System;
use std::collections::BTreeMap;
use std::io;

#[global_allocator]
static ALLOCATOR: Traced<System> = Traced::new(System);

/// Returns the words of a text and the number of occurrences of each: the growing part of the heap.
fn count_words(text: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word.to_owned()).or_default() += 1;
    }
    counts
}

fn main() -> io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("wait") {
        io::stdin().read_line(&mut String::new())?;
    }
    let text: String = (0..10_000).map(|i| format!("word{} ", i % 997)).collect();
    let counts = count_words(&text);
    println!("{} words, {} of them different", counts.values().sum::<usize>(), counts.len());
    Ok(())
}
