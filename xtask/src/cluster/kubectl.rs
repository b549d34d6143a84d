//! kubectl, as one user, and waiting for what it shows. Never what is asked of a cluster.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// kubectl with a configuration.
pub struct Kubectl {
    program: PathBuf,
    configuration: PathBuf,
}

impl Kubectl {
    pub fn new(program: PathBuf, configuration: PathBuf) -> Kubectl {
        Kubectl { program, configuration }
    }

    /// The command, to be run in another way.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Without a cache in the home of whoever runs this.
        let cache = self.configuration.with_file_name("cache");
        command.arg("--kubeconfig").arg(&self.configuration).arg("--cache-dir").arg(cache).args(arguments);
        command
    }

    /// What it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        said(arguments, &self.output(arguments)?)
    }

    /// Everything that came of it.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).stdin(Stdio::null()).output().context("failed to run kubectl")
    }

    /// An object, or a list of them.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get"], arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("`kubectl get {}` has printed no JSON", arguments.join(" ")))
    }

    /// Makes or changes objects; a line for each.
    pub fn apply(&self, documents: &str) -> Result<String> {
        let arguments = ["apply", "-f", "-"];
        let mut command = self.command(&arguments);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().context("failed to run kubectl")?;
        child.stdin.take().context("no input")?.write_all(documents.as_bytes())?;
        said(&arguments, &child.wait_with_output()?)
    }
}

fn said(arguments: &[&str], output: &Output) -> Result<String> {
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("`kubectl {}` failed: {}", arguments.join(" "), words.lines().last().unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Asks again until there is an answer, for as long as it may take; else why there is none is the error.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(e) if begun.elapsed() > limit => {
                return Err(e.context(format!("no {what} after {} s", limit.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}
