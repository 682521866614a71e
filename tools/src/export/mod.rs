//! Exports of a report to the formats of other tools, and as a page of its own.

pub mod folded;
pub mod massif;
pub mod page;
