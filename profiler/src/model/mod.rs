//! Pure: tasks, their table, and the snapshot of it. No I/O, no clock of its own, no async, no aya.

pub mod aggregate;
pub mod cpu;
pub mod groups;
mod index;
pub mod lineage;
pub mod minutes;
pub mod order;
pub mod residence;
pub mod retention;
pub mod sites;
mod slots;
pub mod snapshot;
pub mod table;
pub mod task;
