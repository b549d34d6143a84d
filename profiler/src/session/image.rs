//! Reads a process's image: which build it is, and where that lies in memory. Attaches nothing.

use std::fmt::Display;
use std::path::PathBuf;
use std::rc::Rc;

use super::builds::{Build, Builds, ExtensionBuild, Found};
use super::sites::SpawnSites;
use crate::runtime::{Extension, Walk, refusal_of};
use crate::status::ProbeState;
use crate::target::elf::{self, Segment};
use crate::target::process::{Image, Process};

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
    pub build: Rc<Build>,
    /// Runtime address minus the file's virtual address.
    pub load_bias: u64,
    /// First address and end of the image in memory.
    pub bounds: (u64, u64),
    /// What finds the spawn sites that only stacks tell.
    pub sites: SpawnSites,
    /// A path that opens the file that is probed.
    pub path: PathBuf,
}

/// Why tasks are not measured: a row of the status.
#[derive(Clone)]
pub(super) struct Refusal {
    /// How it stands.
    pub state: ProbeState,
    /// The reason.
    pub why: String,
    /// The runtime whose library is not mapped yet: it may be so in a moment.
    pub awaited: Option<&'static str>,
}

impl Refusal {
    /// It should work, and failed.
    pub fn broken(why: impl Display) -> Refusal {
        Refusal { state: ProbeState::Broken, why: why.to_string(), awaited: None }
    }

    /// This build or this kernel does not permit it.
    pub fn unsupported(why: impl Display) -> Refusal {
        Refusal { state: ProbeState::Unsupported, why: why.to_string(), awaited: None }
    }
}

/// Where no runtime was recognised it may be an implementation that is known not to be supported.
fn say_which(process: &Process, refusal: Refusal) -> Refusal {
    if refusal.state != ProbeState::NotApplicable {
        return refusal;
    }
    refusal_of(process).map_or(refusal, |why| Refusal::unsupported(format!("{why}; the kernel's signals are measured")))
}

/// Recognises the build of a process. With `poll_stack`, parents are to be found by poll probes.
///
/// # Errors
/// There is no runtime, or nothing of it can be probed.
pub(super) fn read(
    process: &Process,
    image: &Image,
    builds: &mut Builds,
    poll_stack: bool,
) -> Result<Reading, Refusal> {
    let found = builds.of(image.file_id, &image.file, poll_stack).map_err(|refusal| say_which(process, refusal))?;
    let (build, library) = match found {
        Found::Here(build) => (build, None),
        Found::InLibrary(runtime, is) => {
            let library = process.library(is).map_err(Refusal::broken)?;
            let library = library.ok_or_else(|| Refusal {
                awaited: Some(runtime.name()),
                ..Refusal::unsupported("the library that has the runtime in it is not loaded")
            })?;
            require_current(&library)?;
            (builds.of_library(&library, poll_stack)?, Some(library))
        }
    };
    let image = library.as_ref().unwrap_or(image);
    let (load_bias, bounds) = placed(process, image, &build.segments)?;
    let walk = build.walk.as_ref().map(|walk| walk(load_bias)).map_err(String::clone);
    let sites = SpawnSites::new(Rc::clone(&build));
    let path = image.path.clone();
    Ok(Reading { code: Code { build, load_bias, bounds, sites, path }, walk })
}

/// A library that was replaced is mapped still, and no file that could be probed.
fn require_current(library: &Image) -> Result<(), Refusal> {
    if !library.is_replaced() {
        return Ok(());
    }
    let name = library.mapped_as.as_deref().unwrap_or(&library.path).display();
    Err(Refusal::unsupported(format!(
        "`{name}` was replaced since this process began, and what it runs cannot be probed any more: restart it"
    )))
}

/// Where an image lies in a process: its load bias, and its first address and end.
fn placed(process: &Process, image: &Image, segments: &[Segment]) -> Result<(u64, (u64, u64)), Refusal> {
    let placements = process.placements(image).map_err(Refusal::broken)?;
    let first = placements.first().ok_or_else(|| Refusal::broken("the image is not in the process's memory map"))?;
    let bounds = (first.start, placements.iter().map(|p| p.end).max().unwrap_or(first.end));
    let load_bias = placements
        .iter()
        .find_map(|p| Some(p.start.wrapping_sub(elf::address_of(segments, p.file_offset)?)))
        .ok_or_else(|| Refusal::broken("the image's memory map and its program headers disagree"))?;
    Ok((load_bias, bounds))
}

/// An extension of a runtime in a process.
pub(super) struct Loaded {
    /// What to probe in it.
    pub build: Rc<ExtensionBuild>,
    /// Runtime address minus the file's virtual address.
    pub load_bias: u64,
    /// A path that opens the file that is probed.
    pub path: PathBuf,
}

/// Recognises the build of an extension that a process has loaded; `None` where it has not.
///
/// # Errors
/// Nothing of it can be probed.
pub(super) fn read_extension(
    process: &Process,
    extension: &Extension,
    builds: &mut Builds,
) -> Result<Option<Loaded>, Refusal> {
    let Some(library) = process.library(extension.is).map_err(Refusal::broken)? else { return Ok(None) };
    require_current(&library)?;
    let build = builds.of_extension(extension, &library).map_err(Refusal::unsupported)?;
    let (load_bias, _) = placed(process, &library, &build.segments)?;
    Ok(Some(Loaded { build, load_bias, path: library.path }))
}
