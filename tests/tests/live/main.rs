//! The profiler as it is shipped, against real programs that publish their own truth. Counts are exact; what is a time
//! has its tolerance beside it. Run by `cargo xtask test`, one test at a time: they share one kernel.

/// A test for each build of the Tokio fixture: calls the module's `check` with its version, profile and flavors.
macro_rules! builds {
    ($($name:ident $version:literal $profile:literal [$($flavor:literal)+];)+) => {
        $(#[test] fn $name() { $(check($version, $profile, $flavor);)+ })+
    };
}

mod accept;
mod agent;
mod asleep;
mod async_tasks;
mod bad_input;
mod budget;
mod churn;
mod deferred;
mod deploy;
mod diagnosis;
mod endpoint;
mod fibers;
mod garbage;
mod hostile_clients;
mod identity;
mod jobs;
mod locks;
mod loops;
mod otlp;
mod pods;
mod polls;
mod privileges;
mod prometheus;
mod puma;
mod puma_cluster;
mod queues;
mod requests;
mod robust;
mod sample;
mod saturated;
mod sched;
mod signals;
mod single_uprobes;
mod spawn_sites;
mod tasks;
mod threads;
mod throttle;
mod trace;
mod unfinished;
mod unicorn;
mod unix;
mod walk;
