//! Says whether the collector knows the target, and builds the collector that `Traced` links into a
//! program.

mod nested;

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let has = |name: &str| env::var_os(name).is_some();
    let is_linux = nested::variable("CARGO_CFG_TARGET_OS") == "linux";
    let here = nested::package();
    let architecture = here.join("src/arch").join(nested::variable("CARGO_CFG_TARGET_ARCH"));
    let is_supported = is_linux && architecture.join("mod.rs").exists();
    println!("cargo::rustc-check-cfg=cfg(heapline_collects)");
    if is_supported {
        println!("cargo::rustc-cfg=heapline_collects");
    }
    if !has("CARGO_FEATURE_TRACED") || has("CARGO_FEATURE_EMBEDDED") || !is_supported {
        return;
    }
    let sources = ["src", "embedded", "nested.rs", "Cargo.toml", "../shared-format/src", "../shared-format/Cargo.toml"];
    sources.iter().for_each(|source| nested::watch(&here.join(source)));
    let triple = nested::variable("TARGET");
    let target = nested::build(&here.join("embedded/Cargo.toml"), "embedded", &["--target", &triple]);
    println!("cargo::rustc-link-search=native={}", target.join(triple).join("release").display());
    println!("cargo::rustc-link-lib=static=heapline_embedded");
}
