//! What the kernel half and the user half agree on: events, map keys and values, histogram buckets,
//! loss reasons. No code that runs on one side only, and no dependency.
#![no_std]

pub mod coroutine;
pub mod counter;
pub mod deferred;
pub mod duration;
pub mod event;
pub mod event_loop;
pub mod histogram;
pub mod job;
pub mod lock;
pub mod map;
pub mod request;
pub mod sched;
