//! The profiler as it is shipped, against real programs that publish their own truth. Counts are exact; what is a time
//! has its tolerance beside it. Run by `cargo xtask test`, one test at a time: they share one kernel.

mod accept;
mod bad_input;
mod endpoint;
mod robust;
mod sched;
mod single_uprobes;
mod tasks;
mod walk;
