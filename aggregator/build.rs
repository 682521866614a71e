//! Builds the collector's library, so that the aggregator can carry it.

#[path = "../collector/nested.rs"]
mod nested;

use std::fs;
use std::hash::{DefaultHasher, Hasher};

fn main() {
    let here = nested::package();
    let sources = ["../collector", "../shared-format/src", "../shared-format/Cargo.toml"];
    sources.iter().for_each(|source| nested::watch(&here.join(source)));
    let target = nested::build(&here.join("../collector/preload/Cargo.toml"), "preload", &[]);
    let library = target.join("release/libheapline_preload.so");
    let bytes = fs::read(&library).expect("the library was built");
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    println!("cargo::rustc-env=HEAPLINE_PRELOAD={}", library.display());
    println!("cargo::rustc-env=HEAPLINE_PRELOAD_HASH={:016x}", hasher.finish());
}
