//! Reads a process's image: which runtime it is, what to probe, and where it lies in memory. Attaches nothing.

use std::fmt::Display;

use memmap2::Mmap;

use super::sites::SpawnSites;
use crate::runtime::{Lineage, Plan, RUNTIMES, Runtime, Walk};
use crate::status::ProbeState;
use crate::target::elf::Binary;
use crate::target::process::{Image, Process};
use crate::target::unwind::Unwinder;

/// What was read.
pub(super) struct Reading {
    /// The image, understood.
    pub code: Code,
    /// How its tasks are read from its memory; else why they are not.
    pub walk: Result<Box<dyn Walk>, String>,
}

/// An image: how to observe it, and where it lies in a process's memory.
pub(super) struct Code {
    /// What to probe.
    pub plan: Plan,
    /// Runtime address minus the file's virtual address.
    pub load_bias: u64,
    /// First address and end of the image in memory.
    pub bounds: (u64, u64),
    /// What finds the spawn sites that only stacks tell.
    pub sites: SpawnSites,
}

/// Why tasks are not measured: a row of the status.
pub(super) struct Refusal {
    /// How it stands.
    pub state: ProbeState,
    /// The reason.
    pub why: String,
}

impl Refusal {
    /// It should work, and failed.
    pub fn broken(why: impl Display) -> Refusal {
        Refusal { state: ProbeState::Broken, why: why.to_string() }
    }

    /// This build or this kernel does not permit it.
    pub fn unsupported(why: impl Display) -> Refusal {
        Refusal { state: ProbeState::Unsupported, why: why.to_string() }
    }
}

/// Recognises the runtime. With `poll_stack`, parents are to be found by poll probes.
///
/// # Errors
/// There is no runtime, or nothing of it can be probed.
pub(super) fn read(process: &Process, image: &Image, poll_stack: bool) -> Result<Reading, Refusal> {
    // SAFETY: the file is a running program's: the kernel refuses to write to it or to truncate it (ETXTBSY).
    let data = unsafe { Mmap::map(&image.file) }.map_err(Refusal::broken)?;
    let binary = Binary::parse(&data).map_err(Refusal::unsupported)?;
    let (runtime, plan) = plan(&binary, poll_stack)?;
    let placements = process.placements(image).map_err(Refusal::broken)?;
    let first = placements.first().ok_or_else(|| Refusal::broken("the image is not in the process's memory map"))?;
    let bounds = (first.start, placements.iter().map(|p| p.end).max().unwrap_or(first.end));
    let load_bias = placements
        .iter()
        .find_map(|p| Some(p.start.wrapping_sub(binary.address_of(p.file_offset)?)))
        .ok_or_else(|| Refusal::broken("the image's memory map and its program headers disagree"))?;
    let walk = runtime.walk(&binary, load_bias);
    let unwinder = Unwinder::of(&binary);
    drop(binary);
    Ok(Reading { code: Code { plan, load_bias, bounds, sites: SpawnSites::new(data, unwinder) }, walk })
}

fn plan(binary: &Binary<'_>, poll_stack: bool) -> Result<(&'static dyn Runtime, Plan), Refusal> {
    for runtime in RUNTIMES {
        let Some(mut plan) = runtime.detect(binary).map_err(Refusal::broken)? else { continue };
        if poll_stack && plan.lineage == Lineage::ThreadLocal {
            with_poll_stack(&mut plan)?;
        }
        return Ok((*runtime, plan));
    }
    Err(Refusal {
        state: ProbeState::NotApplicable,
        why: "no known runtime was recognised: the kernel's signals are measured".to_owned(),
    })
}

/// Makes a plan find parents by poll probes, as it was asked to.
fn with_poll_stack(plan: &mut Plan) -> Result<(), Refusal> {
    if !plan.has_polls() {
        return Err(Refusal::unsupported("the starts and ends of polls were not found"));
    }
    plan.lineage = Lineage::PollStack;
    if let Some(signal) = plan.signals.iter_mut().find(|signal| signal.name == "task_parent") {
        signal.state = Ok("by a stack of polls, as asked for".to_owned());
    }
    Ok(())
}
