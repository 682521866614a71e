//! The traced process as the system shows the process: the program, the threads, the files, and
//! the library of the collector.

mod blocks;
pub mod elf;
pub mod image;
pub mod library;
pub mod procfs;
pub mod tasks;
