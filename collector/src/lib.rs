//! Heapline's half inside the target: the code that runs inside `malloc`.
//!
//! Guarantees to the program that carries the collector:
//!
//! - The collector takes no lock, starts no thread, takes no signal, and prints nothing.
//! - The collector allocates nothing from the traced allocator. Memory of the collector comes from
//!   `mmap`.
//! - `errno` keeps the value left by the real function.
//! - A panic in the collector ends tracing, not the program ([`fail`]).
//! - A forked child finds wiped state, and begins anew or stays untraced ([`process`]).
//! - When something is wrong with tracing, tracing stops.
//!
//! The crate exports no libc name. `preload/` exports the symbols, and is nothing but the exported
//! symbols over [`hooks`], [`cxx`], [`mappings`], [`exec`], [`fork`] and [`loader`]. The crate
//! `shared-format` defines the layout of all written data.
//!
//! ```text
//! hooks ──> thread (ring, in-flight mark, stamps) ──> shared_format::ring
//!   │         └──> unwind (rules, walk, cfi) ──> stacks (ids) ──> modules (announced once)
//!   └──> real (whoever provides malloc)
//! python (CPython's allocators) ──> thread
//! attach (places that lead to an allocator) ──> hooks, doors (other allocators' functions)
//! inner (jemalloc inside of an object, by a listener) ──> hooks::record
//! mappings (mmap and its family) ──> hooks::record
//! ```
//!
//! Two libraries are built from the crate:
//!
//! - `preload/`: the loader brings the library into a program, and the library hooks `malloc`.
//! - `embedded/`: linked into a program that wraps its own allocator in [`Traced`] (feature
//!   `traced`, on by default). For programs without preloading, or programs with an allocator other
//!   than `malloc`.
//!
//! Limits: Linux with glibc 2.17 or newer, or musl, on the architectures with a folder in `arch/`
//! (x86-64).
#![cfg_attr(not(test), no_std)]
#![cfg(heapline_collects)]

/// The name of a symbol defined in assembly. The embedded collector has names of its own: a program
/// with an embedded collector may link this crate a second time, as the library around [`Traced`].
#[cfg(not(feature = "embedded"))]
macro_rules! symbol {
    ($name:literal) => {
        concat!("heapline_", $name)
    };
}
#[cfg(feature = "embedded")]
macro_rules! symbol {
    ($name:literal) => {
        concat!("heapline_embedded_", $name)
    };
}

// The macros of the architecture come first.
#[doc(hidden)]
#[macro_use]
pub mod arch;

// For `preload/`, `embedded/` and benchmarks: no part of the public interface, which is `Traced`.
#[doc(hidden)]
pub mod attach;
#[doc(hidden)]
pub mod cxx;
#[doc(hidden)]
pub mod doors;
#[doc(hidden)]
pub mod embedded;
#[doc(hidden)]
pub mod exec;
#[doc(hidden)]
pub mod fail;
#[doc(hidden)]
pub mod fork;
#[doc(hidden)]
pub mod hooks;
#[doc(hidden)]
pub mod inner;
#[doc(hidden)]
pub mod loader;
#[doc(hidden)]
pub mod mappings;
#[doc(hidden)]
pub mod modules;
#[doc(hidden)]
pub mod offered;
#[doc(hidden)]
pub mod platform;
#[doc(hidden)]
pub mod preloaded;
#[doc(hidden)]
pub mod process;
#[doc(hidden)]
pub mod python;
#[doc(hidden)]
pub mod real;
#[doc(hidden)]
pub mod rules;
#[doc(hidden)]
pub mod sampling;
#[doc(hidden)]
pub mod stacks;
#[doc(hidden)]
pub mod start;
#[doc(hidden)]
pub mod thread;
#[doc(hidden)]
pub mod unwind;

#[cfg(feature = "traced")]
mod traced;
#[cfg(feature = "traced")]
pub use traced::Traced;
