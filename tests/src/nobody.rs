//! Programs run as a user without privileges, but for some capabilities.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, set_capabilities, set_keep_capabilities,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde_json::Value;

/// All that it takes to watch another user's process.
pub const LEAST: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// All that it takes on this kernel: before 5.11 the limit of locked memory must be raised, too.
///
/// # Panics
/// `profiler check` says nothing.
pub fn least_here(profiler: &Path) -> CapabilitySet {
    let output = command(profiler, LEAST).args(["check", "--json"]).output().expect("it can be run");
    let check: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    match check["locked_memory"]["why_not"].as_str() {
        Some(why) if why.contains("CAP_SYS_RESOURCE") => LEAST.union(CapabilitySet::SYS_RESOURCE),
        _ => LEAST,
    }
}

const NOBODY: u32 = 65_534;

/// The program, to be run as such a user. It must be started by root.
pub fn command(program: &Path, capabilities: CapabilitySet) -> Command {
    let mut command = Command::new(program);
    // SAFETY: between fork and exec: system calls alone.
    unsafe { command.pre_exec(move || become_nobody(capabilities)) };
    command
}

/// Gives up all but these, which the next program has, too.
fn become_nobody(kept: CapabilitySet) -> io::Result<()> {
    set_keep_capabilities(true)?;
    set_thread_groups(&[])?;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    for capability in kept.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}
