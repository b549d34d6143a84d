//! An eBPF profiler that watches a language runtime from outside its process. `ARCHITECTURE.md` is the map.

pub mod decode;
pub mod event;
pub mod clock;
pub mod decode;
pub mod export;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod recording;
pub mod runtime;
pub mod session;
pub mod status;
pub mod target;
