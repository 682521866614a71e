//! End-to-end tests: real programs and tiny victims, traced by the built programs, checked against numbers that are
//! known beforehand or that an independent tool gives.
//!
//! A test that needs a tool or a right that is not there says so and passes, but fails where `CI=true`. Randomised
//! tests run a small number of rounds; `HEAPLINE_SEEDS`, `HEAPLINE_KILLS` and `HEAPLINE_EVENTS` ask for more.

mod support;

mod aggregator_faults;
mod allocators;
mod attach;
mod bad_input;
mod blame;
mod collector_faults;
mod contract;
mod counts;
mod exec;
mod follow;
mod fork;
mod gdb;
mod hostile_target;
mod injection;
mod inner;
mod invisible;
mod kill;
mod lines;
mod linked;
mod loaders;
mod mappings;
mod modules;
mod own_heap;
mod pipes;
mod providers;
mod python;
mod python_arrival;
mod python_view;
mod quotas;
mod sampling;
mod signals;
mod story;
mod strangers;
mod surroundings;
mod suspended;
mod symbols_exported;
mod threads;
mod traced;
mod tracemalloc;
mod unseen;
mod verify;
mod waits;
