//! The ground below the collector: system calls, the loader's lists and tables, the thread's own
//! words, the clock, the environment. Nothing here knows of events.

pub mod alone;
pub mod auxiliary;
pub mod clock;
pub mod elf;
pub mod environment;
pub mod executable;
pub mod libc;
mod link_maps;
pub mod objects;
pub mod symbols;
pub mod sys;
pub mod tls;
