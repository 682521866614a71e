//! The thread of the table: it takes what the drain found, and answers questions.

pub mod backlog;
pub mod keeper;
mod mailbox;
