// Rust: generics, boxed closures and the standard library's raw vectors, inlined.
use std::collections::HashMap;

#[inline(never)]
fn table(n: usize) -> HashMap<String, Vec<u64>> {
    (0..n).map(|i| (format!("row {i}"), (0..i as u64).collect())).collect()
}

#[inline(never)]
fn boxed(n: usize) -> Box<dyn Fn(usize) -> usize> {
    let own = vec![n; n + 1];
    Box::new(move |i| own[i % own.len()])
}

fn main() {
    let n = std::env::args().count();
    let rows = table(n);
    println!("{} {}", rows.len(), boxed(n)(3));
}
