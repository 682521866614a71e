//! Exports of a report to the formats of other tools.

pub mod folded;
pub mod html;
