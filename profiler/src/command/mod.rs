//! The subcommands: wiring and what they print. Never parsing, never measuring.

pub mod agent;
pub mod attach;
pub mod check;
mod names;
pub mod ps;
