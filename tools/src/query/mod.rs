//! The question of a report, and its answer: a view, filtered, grouped, compared.

pub mod blame;
pub mod diff;
pub mod estimate;
pub mod filter;
pub mod focus;
pub mod fold;
pub mod growth;
pub mod overview;
pub mod report;
pub mod statistics;
pub mod suppress;
pub mod template;
pub mod threads;
pub mod tree;
pub mod view;
