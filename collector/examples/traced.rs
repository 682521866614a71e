//! A program that brings its own allocator, and can be traced all the same: dynamic or static.
//!
//! ```sh
//! cargo build --release -p heapline-collector --example traced
//! aggregator run -o traced.snap.zst -- target/release/examples/traced
//! ```
//!
//! It says what it holds at its end, and waits for a line on its standard input when its first
//! argument is `wait`, so that an aggregator can attach.

use heapline_collector::Traced;
use std::alloc::System;
use std::collections::BTreeMap;
use std::io;

#[global_allocator]
static ALLOCATOR: Traced<System> = Traced::new(System);

/// The words of a text and how often each occurs: what grows.
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
