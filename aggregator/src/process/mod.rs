//! The traced process as the system shows it: its program, its threads, its files; and the collector's library that it gets.

pub mod elf;
pub mod image;
pub mod library;
pub mod procfs;
pub mod tasks;
