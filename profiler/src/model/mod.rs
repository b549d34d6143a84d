//! Pure: tasks, their table, and the snapshot of it. No I/O, no clock of its own, no async, no aya.

pub mod snapshot;
