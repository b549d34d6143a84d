//! The Ruby adapter: recognises MRI by its library. Its fibers are not probed.
//!
//! The interpreter is a shared library (`libruby-3.1.so.3.1` of Debian, `libruby.so.3.3` elsewhere) or, as ruby-build makes
//! it, in the executable, which then exports what extensions call.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use profiler_common::map::TaskLayout;

use super::{DetectError, Lineage, Plan, Runtime, Signal, SpawnPath, SpawnSite, WalkAt};
use crate::target::elf::Binary;

/// The signals of a plan, in the order of the rows.
const SIGNALS: [&str; 5] = ["task_spawn", "task_complete", "task_parent", "task_name", "task_polls"];
/// What an executable exports that has the interpreter in itself: its version as text (version.c).
const VERSION: &str = "ruby_version";
/// Longer than any version.
const LONGEST: usize = 16;

/// The runtime.
pub struct Ruby;

impl Runtime for Ruby {
    fn name(&self) -> &'static str {
        "ruby"
    }

    fn detect(&self, binary: &Binary<'_>) -> Result<Option<Plan>, DetectError> {
        let linked = || binary.needed.iter().find_map(|library| version_of_library(library));
        Ok(linked().or_else(|| version_within(binary)).map(plan))
    }

    fn spawn_sites(&self, _: &Binary<'_>, stacks: &[SpawnPath]) -> Vec<Option<SpawnSite>> {
        vec![None; stacks.len()]
    }

    fn walk(&self, _: &Binary<'_>) -> Result<WalkAt, String> {
        Err("fibers of Ruby are in no list that could be read".to_owned())
    }
}

/// The version of a library by its name: `libruby-3.1.so.3.1`, `libruby.so.3.3`.
fn version_of_library(name: &str) -> Option<String> {
    let rest = name.strip_prefix("libruby")?;
    let (_, version) = rest.split_once(".so.")?;
    (rest.starts_with(['.', '-'])).then(|| release(version)).flatten()
}

/// The version that the executable exports; `None` where it has no interpreter.
fn version_within(binary: &Binary<'_>) -> Option<String> {
    let symbol = binary.symbols.iter().find(|symbol| symbol.name == VERSION)?;
    let bytes = binary.bytes_from(symbol.address)?;
    let text = bytes[..bytes.len().min(LONGEST)].split(|&byte| byte == 0).next()?;
    release(std::str::from_utf8(text).ok()?)
}

/// Major and minor version, which the layout of memory goes by.
fn release(version: &str) -> Option<String> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    Some(format!("{}.{}", parts.next()??, parts.next()??))
}

/// A plan that says what is not observed.
fn plan(version: String) -> Plan {
    let reason = format!("fibers of Ruby {version} are not probed: what the kernel sees of it is measured");
    Plan {
        runtime: "ruby",
        version: Some(version),
        probes: Vec::new(),
        signals: SIGNALS.iter().map(|&name| Signal { name, state: Err(reason.clone()) }).collect(),
        layout: TaskLayout::default(),
        lineage: Lineage::Unknown,
        outcome: false,
        types: Vec::new(),
        type_by_vtable: HashMap::new(),
        polls: Vec::new(),
    }
}
