//! Exports of a report to the formats of other tools, and as a page of its own (html).

pub mod folded;
pub mod html;
pub mod massif;
