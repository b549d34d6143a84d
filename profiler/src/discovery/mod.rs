//! Which processes of a node are to be watched, and how fast: rules, the file that has them, and the pace. Pure: never a
//! process, never a clock.

pub mod file;
mod glob;
pub mod pace;
pub mod rules;
