//! Link options of the library.
//!
//! The library's functions have names of the C library. References among the functions are bound to
//! the library's own functions, also in a process whose loader would find others first.
//!
//! The library names the C library without versions of symbols: a loader whose C library lacks a
//! requested version ends the program. A program may bring a C library older than the C library of
//! the build machine.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
    let folder = env::var("OUT_DIR").expect("cargo sets it");
    let stand_in = Path::new(&folder).join("libc-without-versions.so");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(compiler)
        .args(["-shared", "-nostdlib", "-Wl,-soname,libc.so.6", "-x", "c", "/dev/null", "-o"])
        .arg(&stand_in)
        .status()
        .expect("a C compiler, which links this, can be run");
    assert!(status.success(), "the stand-in for the C library was not linked; the lines above say why");
    println!("cargo::rustc-cdylib-link-arg=-Wl,--no-as-needed");
    println!("cargo::rustc-cdylib-link-arg={}", stand_in.display());
}
