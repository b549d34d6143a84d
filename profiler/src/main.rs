//! The command: parses, runs, and turns an error into one line.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use profiler::cli::{Cli, Command};
use profiler::command::{agent, attach, check, ps};
use profiler::kernel::holder;
use profiler::metrics;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let environment = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(environment).format_target(false).init();
    match run(cli.command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {}", one_line(&e));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Attach { pids, measure, exports } => attach::attach(pids, &measure, &exports),
        Command::Agent { discover, measure, exports } => agent::agent(&discover, &measure, &exports),
        Command::Run { command, measure, exports } => attach::run(&command, &measure, &exports),
        Command::Tree { pids, measure, json } => attach::tree(pids, &measure, json),
        Command::Ps => {
            print!("{}", ps::list());
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { json, without } => {
            let report = check::check(&without)?;
            print!("{}", if json { format!("{:#}\n", report.document()) } else { report.text() });
            Ok(if report.usable() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::HoldProbes => {
            holder::serve().context("failed to hold probes: this command is the profiler's own")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::MetricsDoc => {
            print!("{}", metrics::document());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The error and its causes. Many errors name their cause themselves, and it is not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string().replace('\n', " ")) {
        if !line.contains(&cause) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&cause);
        }
    }
    line
}
