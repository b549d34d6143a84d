//! An eBPF profiler that watches a language runtime from outside its process. `ARCHITECTURE.md` is the map.

pub mod budget;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod decode;
pub mod diagnosis;
pub mod discovery;
pub mod event;
pub mod export;
pub mod histogram;
pub mod kernel;
pub mod launch;
pub mod metrics;
pub mod model;
pub mod recording;
pub mod remote;
pub mod runtime;
pub mod session;
pub mod status;
pub mod target;
pub mod trace;
