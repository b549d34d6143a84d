//! The Ruby adapter: MRI's fibers, by the one place where a thread goes from one to another.
//!
//! The interpreter is a shared library (`libruby-3.1.so.3.1` of Debian, `libruby.so.3.3` elsewhere) or, as ruby-build makes
//! it, in the executable; both export what extensions call.

mod collector;
mod iodine;
mod layout;
mod lock;
mod naming;
mod other;
mod switch;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::HashMap;

use profiler_common::map::TaskLayout;

use self::naming::Names;
use super::{
    Argument, Command, DetectError, Extension, Hook, IdPlace, IsLibrary, Lineage, Naming, Plan, ProbeSpec, Runtime,
    Signal, SpawnPath, SpawnSite, WalkAt,
};
use crate::target::elf::Binary;
use crate::target::memory::Memory;

/// The signals of a plan, in the order of the rows.
const SIGNALS: [&str; 8] =
    ["task_spawn", "task_complete", "task_parent", "task_name", "task_polls", "task_wait", "gc_pause", "lock_wait"];
/// What has the interpreter exports its version as text (version.c).
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
        Ok(version_within(binary).map(|version| plan(binary, version)))
    }

    fn library(&self, binary: &Binary<'_>) -> Option<IsLibrary> {
        binary.needed.iter().any(|name| is_library(name)).then_some(is_library)
    }

    fn refuses(&self, command: &Command<'_>) -> Option<&'static str> {
        other::named(command)
    }

    fn extension(&self) -> Option<&'static Extension> {
        Some(&iodine::IODINE)
    }

    fn naming(&self, plan: &Plan) -> Option<Box<dyn Naming>> {
        let layout = layout::of(plan.version.as_deref()?)?;
        Some(Box::new(Names(layout)))
    }

    fn collections(&self, plan: &Plan, memory: &dyn Memory, low: u64, high: u64) -> Option<u64> {
        collector::collections(&layout::of(plan.version.as_deref()?)?, memory, low, high)
    }

    fn spawn_sites(&self, _: &Binary<'_>, stacks: &[SpawnPath]) -> Vec<Option<SpawnSite>> {
        vec![None; stacks.len()]
    }

    fn walk(&self, _: &Binary<'_>) -> Result<WalkAt, String> {
        Err("fibers are in no list that could be read".to_owned())
    }
}

/// Whether a file is the interpreter's library, by its name: `libruby-3.1.so.3.1`, `libruby.so.3.3`.
fn is_library(name: &str) -> bool {
    name.strip_prefix("libruby")
        .filter(|rest| rest.starts_with(['.', '-']))
        .and_then(|rest| rest.split_once(".so."))
        .is_some_and(|(_, version)| release(version).is_some())
}

/// The version that the binary exports; `None` where it has no interpreter.
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

fn plan(binary: &Binary<'_>, version: String) -> Plan {
    let Some(layout) = layout::of(&version) else {
        let known: Vec<&str> = layout::versions().collect();
        let reason = format!("how Ruby {version} keeps its fibers is not known: {} are", known.join(", "));
        return Plan::without_probes("ruby", Some(version), &SIGNALS, &reason);
    };
    // Each is of use without the other.
    let switches = switch::calls(binary)
        .map_err(|why| format!("where this build of Ruby {version} switches fibers was not found: {why}"));
    let clocks = collector::clock_calls(binary).map_err(|why| format!("pauses are not seen: {why}"));
    let probe = |hook: Hook, call: u64| {
        Some(ProbeSpec {
            hook,
            file_offset: binary.file_offset(call)?,
            // coroutine_transfer(from, to), clock_gettime(clock, to)
            argument: Argument::Rdi,
            displacement: 0,
            kind: None,
            id: IdPlace::Register(Argument::Rsi),
            // A call that is relative.
            emulated: true,
        })
    };
    let calls = |hook, found: &Result<Vec<u64>, String>| {
        found.iter().flatten().filter_map(|&call| probe(hook, call)).collect::<Vec<_>>()
    };
    let mut probes = calls(Hook::Transfer, &switches);
    probes.extend(calls(Hook::Pause, &clocks));
    let waits = switches.as_ref().map(|_| wait::sites(binary)).map_err(String::clone);
    let waits = waits.and_then(|(sites, dear)| {
        probes.extend(sites.iter().filter_map(|(site, reason)| {
            let probe = probe(Hook::Wait, site.address)?;
            Some(ProbeSpec { displacement: *reason as i16, ..probe })
        }));
        match (sites.len(), &dear[..]) {
            (0, _) => Err("what tells of waits was not found: all are `other`".to_owned()),
            (found, []) => Ok(format!("at {found} functions that call a fiber scheduler")),
            (found, dear) => {
                Ok(format!("at {found} functions that call a fiber scheduler; not at {}", dear.join(", ")))
            }
        }
    });
    // Whoever has no fibers waits for the lock all the same; what is seen of it comes and goes with the polls of fibers.
    let locks = switches.as_ref().map_err(String::clone).and_then(|_| lock::sites(binary));
    let locks = locks.map(|sites| {
        probes.extend(sites.iter().filter_map(|site| {
            let probe = probe(Hook::Lock, site.address)?;
            Some(ProbeSpec { argument: site.thread, displacement: site.tells as i16, id: IdPlace::Nowhere, ..probe })
        }));
        "where a thread waits for the interpreter's lock, and has it".to_owned()
    });
    let fibers = |how: &str| switches.as_ref().map(|_| how.to_owned()).map_err(String::clone);
    let states = [
        fibers("at a fiber's first switch"),
        fibers("at a fiber's last switch"),
        fibers("the fiber that ran when it was first switched to"),
        fibers("by file and line of its block, from the process's memory"),
        fibers("from one switch to the next"),
        waits,
        clocks.as_ref().map(|_| "between the collector's looks at the clock".to_owned()).map_err(String::clone),
        locks,
    ];
    Plan {
        probes,
        signals: SIGNALS.into_iter().zip(states).map(|(name, state)| Signal { name, state }).collect(),
        layout: TaskLayout { coroutine: layout.coroutine, ..TaskLayout::default() },
        lineage: Lineage::Transfer,
        outcome: false,
        types: Vec::new(),
        type_by_vtable: HashMap::new(),
        polls: Vec::new(),
        runtime: "ruby",
        version: Some(version),
    }
}
