//! Which processes, and what is in them. Never a runtime.

pub mod accept_site;
pub mod elf;
pub mod identity;
pub mod listener;
pub mod memory;
pub mod process;
pub mod site;
pub mod throttle;
pub mod unwind;
