//! Shared by the integration tests: programs that are started and ended, what they say, and what the kernel says.

pub mod bpf;
pub mod cgroup;
pub mod check;
pub mod code;
pub mod container;
pub mod fixture;
pub mod histogram;
pub mod http;
pub mod kernel;
pub mod kubernetes;
pub mod manifest;
pub mod maps;
pub mod nobody;
pub mod node;
pub mod page;
pub mod place;
pub mod profiler;
pub mod program;
pub mod random;
pub mod ruby;
pub mod scratch;
pub mod server;
pub mod sidekiq;
pub mod status;
pub mod table;
pub mod wait;
