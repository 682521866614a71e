//! The library's functions have names of the C library's. Where they refer to each other they mean their own, also in a
//! process whose loader would find others first.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
}
