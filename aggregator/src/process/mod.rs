//! The traced process as the system shows the process: the program, the threads, the files, and
//! the library of the collector. Also the means to stop threads.

pub mod beats;
mod blocks;
pub mod elf;
pub mod frozen;
pub mod image;
pub mod library;
pub mod procfs;
pub mod ptrace;
pub mod rights;
pub mod tasks;
