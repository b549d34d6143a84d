//! The profiler as it is shipped, against real programs that publish their own truth. Counts are exact; what is a time
//! has its tolerance beside it. Run by `cargo xtask test`, one test at a time: they share one kernel.

mod accept;
mod bad_input;
mod budget;
mod diagnosis;
mod endpoint;
mod polls;
mod queues;
mod robust;
mod sample;
mod sched;
mod single_uprobes;
mod spawn_sites;
mod tasks;
mod throttle;
mod trace;
mod unfinished;
mod walk;
