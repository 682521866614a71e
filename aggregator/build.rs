//! Builds the collector's library, so that the aggregator can carry it.

#[path = "../collector/nested.rs"]
mod nested;

fn main() {
    let here = nested::package();
    let sources = ["../collector", "../shared-format/src", "../shared-format/Cargo.toml"];
    sources.iter().for_each(|source| nested::watch(&here.join(source)));
    let target = nested::build(&here.join("../collector/preload/Cargo.toml"), "preload", &[]);
    let library = target.join("release/libheapline_preload.so");
    println!("cargo::rustc-env=HEAPLINE_PRELOAD={}", library.display());
}
