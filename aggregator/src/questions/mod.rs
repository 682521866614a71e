//! The thread of the table: receives records from the drain, and answers questions.

pub mod backlog;
pub mod keeper;
mod mailbox;
pub mod native;
