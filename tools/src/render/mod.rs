//! Output of a report as text, JSON or CSV.

pub mod csv;
pub mod json;
mod source;
pub mod sparkline;
pub mod text;

pub use source::Sources;
