//! A report as text, JSON or CSV.

pub mod csv;
pub mod json;
mod size;
mod source;
pub mod text;

pub use size::format_size;
pub use source::Sources;
