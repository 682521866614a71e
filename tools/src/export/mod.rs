//! A report in the formats of other tools.

pub mod folded;
pub mod html;
