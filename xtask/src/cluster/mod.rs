//! `cargo xtask cluster`: the shipped manifests on a real Kubernetes node of this host's own, which is gone afterwards.

mod agent;
mod code;
mod components;
mod images;
mod keys;
mod kubectl;
mod prometheus;
mod rights;
mod room;
mod source;
mod steps;
mod target;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::root;
use crate::{image, setup};
use components::Node;
use keys::Keys;
use room::Room;
use source::{Programs, fresh};

/// Of all steps; they take some two minutes.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Set by a signal that asks for the end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Builds what it takes, runs the node in a room of its own, and cleans up, whatever comes of it.
///
/// # Errors
/// A step fails: it is said where the log is.
pub fn run(only_build: bool) -> Result<()> {
    let begun = Instant::now();
    // SAFETY: always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        bail!("a node takes root: run this as `sudo -E cargo xtask cluster`");
    }
    ["buildah", "promtool", "ip"].iter().try_for_each(|need| setup::have(need))?;
    let programs = Programs::have()?;
    image::build("latest")?;
    images::build(&programs)?;
    println!("{:6.1} s  everything is built", begun.elapsed().as_secs_f64());
    if only_build {
        return Ok(());
    }
    fresh(&logs())?;
    // From here on there is something to clean up, which an interrupt does not interrupt.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler sets a flag, and nothing else.
        unsafe { libc::signal(signal, interrupt as extern "C" fn(i32) as libc::sighandler_t) };
    }
    let room = Room::open()?;
    fresh(&folder())?;
    let result = inside(&room);
    let ended = room.empty()?;
    drop(room);
    fs::remove_dir_all(folder()).context("failed to clean up")?;
    let took = begun.elapsed().as_secs_f64();
    println!("{took:6.1} s  cleaned up: {ended} processes of the node were ended");
    result.with_context(|| format!("the cluster's logs are in `{}`", logs().display()))?;
    println!("all steps have passed in {took:.0} s");
    Ok(())
}

/// Runs this program once more, in the room.
fn inside(room: &Room) -> Result<()> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["cluster", "--inside"]);
    room.enter(&mut command)?;
    let begun = Instant::now();
    let mut child = command.spawn().context("failed to enter namespaces of its own")?;
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() { Ok(()) } else { bail!("a step has failed") };
        }
        let interrupted = INTERRUPTED.load(Ordering::Relaxed);
        if interrupted || begun.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("{}", if interrupted { "interrupted" } else { "a step does not end" });
        }
        thread::sleep(Duration::from_millis(100));
    }
}

extern "C" fn interrupt(_signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Within the room: starts the node, and goes through the steps.
///
/// # Errors
/// A step fails.
pub fn run_inside() -> Result<()> {
    room::furnish(&folder(), &logs())?;
    let programs = Programs::have()?;
    let keys = Keys::new(&folder().join("keys"))?;
    let node = Node { programs: &programs, keys: &keys, folder: &folder(), logs: &logs() };
    steps::all(&node)
}

/// What is gone after a run.
fn folder() -> PathBuf {
    root().join("target/cluster/run")
}

/// What is there until the next run.
fn logs() -> PathBuf {
    root().join("target/cluster/logs")
}
