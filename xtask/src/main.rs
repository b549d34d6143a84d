//! The project's own automation. One file per task; each step is a command that a person can run.

mod bench;
#[path = "../../tests/src/bpf.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod bpf;
mod build;
mod cluster;
mod dashboards;
mod deb;
mod demo;
mod docs;
mod fixtures;
mod image;
mod kernels;
#[path = "../../tests/src/manifest.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod manifest;
mod process;
mod rubies;
mod setup;
mod target;
mod test;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, build, try, test and measure profiler")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and test, and nothing else
    Setup {
        /// Only report what is missing; fail if anything is
        #[arg(long)]
        check: bool,
    },
    /// Build the profiler (set-up included)
    Build,
    /// Start a small Tokio server under load, attach to it, and show what is seen
    Demo {
        /// Stop after this time, as `10s` [default: until Ctrl-C]
        #[arg(long, value_parser = humantime::parse_duration)]
        duration: Option<Duration>,
        /// Address to serve the metrics on
        #[arg(long, default_value = "127.0.0.1:9909")]
        listen: String,
    },
    /// Run all tests: formatting, lints, units, replay, and live ones against real programs (root is needed)
    Test {
        /// Only the live tests whose name contains this
        #[arg(long, value_name = "NAME")]
        live: Option<String>,
    },
    /// Measure what the profiler costs, as docs/measuring.md says (root is needed)
    Bench {
        /// Only the measurements whose name contains this
        name: Option<String>,
        /// Pairs of slices, with the profiler and without
        #[arg(long, default_value_t = 12)]
        pairs: usize,
        /// How long each slice lasts
        #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
        slice: Duration,
        /// Time between attaching and the first slice
        #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
        settle: Duration,
    },
    /// Run live tests on older and newer kernels, each in a virtual machine (docs/kernels.md)
    Kernels {
        /// Only this kernel, as `6.1` [default: all, and the table is written]
        name: Option<String>,
        /// Only write the table of the runs that were last
        #[arg(long)]
        table: bool,
    },
    /// Build the Debian package into target/deb, and try it in a copy of this host's files
    Deb,
    /// Build the container image, of one static file, into target/image (buildah is installed for it)
    Image {
        /// Its tag, as `0.1.0`
        #[arg(long, default_value = "latest", value_parser = image::tag)]
        tag: String,
    },
    /// Run the tests of Ruby with the Ruby of a later Debian, installed in a directory of its own (root is needed)
    Rubies,
    /// Run the shipped manifests on a Kubernetes node of this host's own, built of Debian's source (root is needed)
    Cluster {
        /// Only build what it takes: ten to twenty minutes, once
        #[arg(long)]
        only_build: bool,
        /// What this task runs itself as, in namespaces of its own
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// Write the dashboard of a node again, of its panels in this task
    Dashboards,
    /// Write the generated documentation again
    Docs,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup { check } => setup::run(check),
        Task::Build => setup::run(false).and_then(|()| build::profiler()).map(|_| ()),
        Task::Demo { duration, listen } => demo::run(duration, &listen),
        Task::Test { live } => test::run(live.as_deref()),
        Task::Bench { name, pairs, slice, settle } => {
            bench::run(name.as_deref(), bench::Effort { pairs, slice, settle })
        }
        Task::Kernels { name, table } => kernels::run(name.as_deref(), table),
        Task::Deb => deb::build(),
        Task::Image { tag } => image::build(&tag),
        Task::Cluster { inside: true, .. } => cluster::run_inside(),
        Task::Cluster { only_build, .. } => cluster::run(only_build),
        Task::Rubies => rubies::run(),
        Task::Dashboards => dashboards::write(),
        Task::Docs => docs::write(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
