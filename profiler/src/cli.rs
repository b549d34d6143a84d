//! The command line. Pure parsing: nothing is opened, attached or changed here.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::budget::Budget;
use crate::export::http;
use crate::export::otlp::Protocol;
use crate::kernel::signal::Unwanted;

/// Largest ring that may be asked for.
const MAX_RING_MIB: u32 = 1024;
/// Metrics are pushed no more often.
const LEAST_PUSH_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Parser)]
#[command(
    name = "profiler",
    version,
    about = "Watches a running Tokio process from outside: run queue, accept queue, and the life of every task",
    long_about = "Attaches to running processes with eBPF and shows where work waits: in the kernel's accept queue, in the \
                  CPU's run queue, or in a task. Nothing in the application is changed: no rebuild, no library, no restart.",
    after_help = "Examples:
  profiler ps                                   which processes can be profiled, and what of them
  profiler attach --pid 4242                    attach, and serve http://127.0.0.1:9909/metrics until Ctrl-C
  profiler attach --pid 4242 --duration 10s --print
                                                measure for ten seconds, print the metrics, and exit
  profiler tree --pid 4242                      watch for ten seconds, print which tasks spawned which, and where
  profiler agent --config.file rules.toml       watch the processes of this node that the rules name
  profiler run -- ./server --port 8080          start a program and profile it from its first instruction
  profiler check                                what this kernel and these privileges permit, and the remedy

Exit status: 0 success, 1 failure, 2 wrong usage."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach to running processes and serve their metrics
    Attach {
        /// Process to attach to (repeat for several)
        #[arg(long = "pid", value_name = "PID", required = true, value_parser = clap::value_parser!(u32).range(1..))]
        pids: Vec<u32>,
        #[command(flatten)]
        measure: Measure,
        #[command(flatten)]
        exports: Exports,
    },
    /// Watch a whole node: find processes as they come, and let them go when they end
    Agent {
        #[command(flatten)]
        discover: Discover,
        #[command(flatten)]
        measure: Measure,
        #[command(flatten)]
        exports: Exports,
    },
    /// Start a program and profile it from its first instruction
    Run {
        #[command(flatten)]
        measure: Measure,
        #[command(flatten)]
        exports: Exports,
        /// The program and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Watch running processes for a while, and print which tasks spawned which, and where
    #[command(mut_arg("print", |print| print.hide(true)))]
    Tree {
        /// Process to attach to (repeat for several)
        #[arg(long = "pid", value_name = "PID", required = true, value_parser = clap::value_parser!(u32).range(1..))]
        pids: Vec<u32>,
        #[command(flatten)]
        measure: Measure,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List processes, their runtimes, and what can be measured
    Ps,
    /// Show what this kernel and these privileges permit, and the remedy for what they do not
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// A way of attaching that is not to be used, as for `attach`
        #[arg(long, hide = true, value_name = "[SIGNAL:]WAY", value_parser = Unwanted::parse)]
        without: Vec<Unwanted>,
    },
    /// Hold uprobes for the process at the other end of the standard input
    #[command(hide = true)]
    HoldProbes,
    /// Write the documentation of all metrics
    #[command(hide = true)]
    MetricsDoc,
}

/// How to measure.
#[derive(Args, Clone, Debug)]
pub struct Measure {
    /// Stop after this time, as `10s` or `5m` [default: until Ctrl-C or until all processes have ended; `tree`: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Print the page of metrics at the end, instead of serving it (measures for 10s unless --duration is given)
    #[arg(long)]
    pub print: bool,
    /// Print a readable summary every so often, as `2s`
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub watch: Option<Duration>,
    /// Tasks that are tracked at the same time; more are counted, but their lifetimes are not measured
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub max_tasks: u32,
    /// Size of the event buffer in MiB, a power of two
    #[arg(long, value_name = "MIB", default_value_t = 4, value_parser = ring_mib)]
    pub ring_mib: u32,
    /// How long the series of an ended process are kept, as `10m`
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub retention: Duration,
    /// How long the counts of each minute are kept that `/minutes` shows, as `6h`
    #[arg(long = "minutes.retention", value_name = "TIME", default_value = "6h", value_parser = duration)]
    pub minutes: Duration,
    /// Share of the CPU time that a target uses which probing it may cost, as `2%`, besides 0.1 ms a second for births and ends
    /// of tasks; `off` measures everything always
    #[arg(long, value_name = "SHARE", default_value_t = Budget::DEFAULT)]
    pub budget: Budget,
    /// A task that holds its thread for this long at once is slow, and is reported
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = duration)]
    pub slow_poll: Duration,
    /// Write every birth, end, poll and wake to a new file, which Perfetto opens; within a budget, those of its windows
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Size at which the trace ends, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub trace_limit: u64,
    /// Measure connections and requests, how long threads are busy after a reply, and jobs that are taken from Redis; a little slower for every process of
    /// the machine that uses sockets
    #[arg(long)]
    pub requests: bool,
    /// Attach even when another profiler watches the process already
    #[arg(long)]
    pub force: bool,
    /// Keep the capabilities that only attaching takes: needed where a target execs into a program without a C library
    #[arg(long)]
    pub keep_capabilities: bool,
    /// A way of attaching that is not to be used, as on kernels that do not have it (repeat for several)
    #[arg(long, hide = true, value_name = "[SIGNAL:]WAY", value_parser = Unwanted::parse)]
    pub without: Vec<Unwanted>,
    /// Find parents by probes on every poll, also where the thread-local context tells them (costs more)
    #[arg(long, hide = true)]
    pub poll_stack: bool,
}

/// Which processes of a node are watched.
#[derive(Args, Clone, Debug)]
pub struct Discover {
    /// Rules, TOML or YAML, read again on SIGHUP [default: every process whose runtime is known]
    #[arg(long = "config.file", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Processes that are watched at the same time; each takes some 10 KiB of kernel memory per CPU [default: 256, or as many as
    /// 80 MiB are enough for, which are fewer above 30 CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_targets: Option<u32>,
    /// Share of the node's CPU time, of all CPUs, which probing may cost all targets together, as `1%`: where they would cost
    /// more, each has less than its --budget; `off`, and --budget off: each has its own
    #[arg(long, value_name = "SHARE", default_value_t = Budget::NODE)]
    pub node_budget: Budget,
    /// Attaches per second at most; seven eighths of the time are spent on them at most, too
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub attach_rate: u32,
    /// A process is looked at once it has run its program for this long
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = duration)]
    pub settle: Duration,
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

/// Names of pods.
#[derive(Args, Clone, Debug)]
pub struct Kubernetes {
    /// Ask the Kubernetes API for the names and labels of this node's pods
    #[arg(long)]
    pub kubernetes: bool,
    /// Name of this node in the cluster [default: the environment's NODE_NAME]
    #[arg(long = "kubernetes.node-name", value_name = "NAME", requires = "kubernetes")]
    pub node_name: Option<String>,
    /// Where the API is and who asks, outside of a pod [default: the pod's service account]
    #[arg(long = "kubernetes.kubeconfig", value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
}

/// Where the metrics go.
#[derive(Args, Clone, Debug)]
pub struct Exports {
    #[command(flatten)]
    pub web: Web,
    #[command(flatten)]
    pub otlp: Otlp,
}

/// The endpoint. Flags are named as the Prometheus exporters name them.
#[derive(Args, Clone, Debug)]
pub struct Web {
    /// Address to serve on (repeat for several)
    #[arg(long = "web.listen-address", value_name = "ADDR:PORT", default_value = "127.0.0.1:9909", value_parser = listen_address)]
    pub listen_addresses: Vec<SocketAddr>,
    /// File with TLS certificates and users, as Prometheus' exporters have it
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Path under which the metrics are served
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics", value_parser = telemetry_path)]
    pub telemetry_path: String,
}

/// Pushing by OTLP. What no flag says is taken from OpenTelemetry's environment (OTEL_EXPORTER_OTLP_HEADERS and the like).
#[derive(Args, Clone, Debug)]
pub struct Otlp {
    /// Push the metrics to this collector, as http://collector:4318; without a URL to that of OTEL_EXPORTER_OTLP_ENDPOINT
    #[arg(long = "otlp.endpoint", value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    pub endpoint: Option<String>,
    /// http/protobuf or grpc [default: OTEL_EXPORTER_OTLP_PROTOCOL, else http/protobuf]
    #[arg(long = "otlp.protocol", value_name = "PROTOCOL", requires = "endpoint")]
    pub protocol: Option<Protocol>,
    /// How often
    #[arg(long = "otlp.interval", value_name = "TIME", default_value = "15s", value_parser = push_interval)]
    pub interval: Duration,
    /// File with headers that are sent along, a line each, as `authorization: Bearer TOKEN`
    #[arg(long = "otlp.headers-file", value_name = "FILE", requires = "endpoint")]
    pub headers_file: Option<PathBuf>,
    /// File with the certificates that are trusted [default: those that the host trusts]
    #[arg(long = "otlp.ca-file", value_name = "FILE", requires = "endpoint")]
    pub ca_file: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|e| format!("{e}; write it as 10s, 500ms or 5m"))?;
    if parsed.is_zero() { Err("must be more than zero".to_owned()) } else { Ok(parsed) }
}

/// A snapshot costs some milliseconds.
fn push_interval(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    if parsed < LEAST_PUSH_INTERVAL { Err(format!("must be at least {LEAST_PUSH_INTERVAL:?}")) } else { Ok(parsed) }
}

fn ring_mib(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(n) if n.is_power_of_two() && n <= MAX_RING_MIB => Ok(n),
        _ => Err(format!("must be a power of two, from 1 to {MAX_RING_MIB}")),
    }
}

/// As the Prometheus exporters do, `:9909` means all addresses.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse().map_err(|_| "must be ADDRESS:PORT, as 127.0.0.1:9909 or :9909".to_owned())
}

fn telemetry_path(text: &str) -> Result<String, &'static str> {
    http::check_path(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn error(arguments: &[&str]) -> String {
        Cli::try_parse_from(arguments).unwrap_err().to_string()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn several_processes_may_be_named() {
        let cli = Cli::try_parse_from(["profiler", "attach", "--pid", "7", "--pid", "8"]).unwrap();
        assert!(matches!(cli.command, Command::Attach { pids, .. } if pids == [7, 8]));
    }

    #[test]
    fn an_agent_needs_no_flag() {
        let cli = Cli::try_parse_from(["profiler", "agent"]).unwrap();
        assert!(matches!(cli.command, Command::Agent { discover, .. }
            if discover.config.is_none() && discover.max_targets.is_none()));
        assert!(error(&["profiler", "agent", "--max-targets", "0"]).contains("1..=4096"));
        assert!(error(&["profiler", "agent", "--pid", "7"]).contains("--pid"));
        assert!(error(&["profiler", "agent", "--otlp.interval", "99ms"]).contains("at least 100ms"));
    }

    #[test]
    fn a_tree_takes_the_flags_of_a_measurement() {
        let cli = Cli::try_parse_from(["profiler", "tree", "--pid", "7", "--duration", "2s", "--json"]).unwrap();
        assert!(matches!(cli.command, Command::Tree { json: true, measure, .. } if measure.duration.is_some()));
    }

    #[test]
    fn a_program_keeps_its_own_flags() {
        let cli = Cli::try_parse_from(["profiler", "run", "--", "server", "--pid", "x"]).unwrap();
        assert!(matches!(cli.command, Command::Run { command, .. } if command == ["server", "--pid", "x"]));
    }

    #[test]
    fn bad_values_are_refused_with_what_would_be_good() {
        assert!(error(&["profiler", "attach"]).contains("--pid"));
        assert!(error(&["profiler", "attach", "--pid", "0"]).contains("0"));
        assert!(error(&["profiler", "attach", "--pid", "1", "--duration", "ten"]).contains("10s"));
        assert!(error(&["profiler", "attach", "--pid", "1", "--duration", "0s"]).contains("more than zero"));
        assert!(error(&["profiler", "attach", "--pid", "1", "--ring-mib", "3"]).contains("power of two"));
        assert!(error(&["profiler", "attach", "--pid", "1", "--web.listen-address", "nowhere"]).contains("9909"));
        assert!(error(&["profiler", "attach", "--pid", "1", "--web.telemetry-path", "/status"]).contains("another"));
    }

    #[test]
    fn a_port_alone_means_all_addresses() {
        assert_eq!(listen_address(":9909").unwrap(), "0.0.0.0:9909".parse().unwrap());
    }
}
