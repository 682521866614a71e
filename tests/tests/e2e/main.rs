//! End-to-end tests: the built programs trace real programs and tiny victims. The expected numbers
//! are known beforehand or come from an independent tool.
//!
//! A test without a needed tool or right prints the reason and passes. With `CI=true` such a test
//! fails.
//!
//! Randomised tests run a small number of rounds. More rounds: `HEAPLINE_SEEDS`, `HEAPLINE_KILLS`,
//! `HEAPLINE_EVENTS`, `HEAPLINE_ATTACHES`, `HEAPLINE_FAULTS`, `HEAPLINE_RAINS`.

mod ages;
mod support;

mod aggregator_faults;
mod allocators;
mod attach;
mod bad_input;
mod blame;
mod collector_faults;
mod containers;
mod contract;
mod counts;
mod documents;
mod exec;
mod follow;
mod fork;
mod frame_pointers;
mod gdb;
mod groups;
mod history;
mod holes;
mod hostile_target;
mod injection;
mod inner;
mod instants;
mod invisible;
mod kill;
mod leaks;
mod lines;
mod linked;
mod list;
mod loaders;
mod mappings;
mod modules;
mod musl;
mod names;
mod own_heap;
mod pipes;
mod providers;
mod python;
mod python_arrival;
mod python_view;
mod quotas;
mod sampling;
mod signals;
mod spoken;
mod story;
mod strangers;
mod surroundings;
mod suspended;
mod symbols_exported;
mod text;
mod threads;
mod traced;
mod tracemalloc;
mod unseen;
mod verify;
mod waits;
