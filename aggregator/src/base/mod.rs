//! Code without knowledge of tracing: system calls, queues, files, text.

pub mod chunks;
pub mod private_dir;
pub mod queue;
pub mod sys;
pub mod text;
pub mod whole_file;
