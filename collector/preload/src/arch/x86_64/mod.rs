//! x86-64.

pub(crate) mod direct;
pub(crate) mod entries;
mod memory;
