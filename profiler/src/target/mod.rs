//! Which processes, and what is in them. Never a runtime.

pub mod elf;
pub mod site;
