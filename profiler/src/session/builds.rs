//! Builds of programs that were read: what is to be probed in each, shared by all processes that run it. Never a process.

use std::collections::HashMap;
use std::fs::File;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use super::image::Refusal;
use super::sites::Paths;
use crate::model::task::{SiteInfo, TypeInfo};
use crate::runtime::{
    Extension, ExtensionPlan, IsLibrary, Lineage, Plan, RUNTIMES, Runtime, SpawnSite, TaskType, WalkAt, library_of,
};
use crate::status::ProbeState;
use crate::target::elf::{Binary, Segment};
use crate::target::process::{FileId, Image};
use crate::target::unwind::Unwinder;

/// Files that are remembered: a node runs some hundred programs, and most of them have no runtime that is known.
const MOST: usize = 1024;

/// One build, read and understood.
pub(super) struct Build {
    /// The executable; `None` of a library, which may be written to: what is known of it was read.
    pub file: Option<Mmap>,
    /// What of it is loaded, and where.
    pub segments: Vec<Segment>,
    /// Whose it is.
    pub runtime: &'static dyn Runtime,
    /// What to probe.
    pub plan: Plan,
    /// The types of tasks, as the model keeps them.
    pub types: Arc<[TypeInfo]>,
    /// What unwinds the stacks of its threads.
    pub unwinder: Option<Unwinder>,
    /// How the tasks of its processes are read from their memory; else why they are not.
    pub walk: Result<WalkAt, String>,
    /// The spawn sites that only stacks tell, found in any of its processes.
    pub paths: Paths,
}

impl Build {
    /// Gives back the pages of the file that were read: they are read again where they are needed again.
    pub fn forget_pages(&self) {
        let Some(file) = &self.file else { return };
        // SAFETY: the mapping is of a file and never written to: its pages are the file's, before and after.
        if let Err(e) = unsafe { file.unchecked_advise(UncheckedAdvice::DontNeed) } {
            log::debug!("failed to give back the pages of an executable: {e}");
        }
    }
}

/// What became of a file that was read.
enum Known {
    /// It is there for as long as a process is watched that runs it.
    Build(Weak<Build>),
    /// The runtime is in a library of it.
    InLibrary(&'static dyn Runtime, IsLibrary),
    /// There is nothing to be probed in it, and why.
    Nothing(Refusal),
}

/// Where a program has its runtime.
pub(super) enum Found {
    /// In itself.
    Here(Rc<Build>),
    /// In a library, which these files are.
    InLibrary(&'static dyn Runtime, IsLibrary),
}

/// The builds that are known.
#[derive(Default)]
pub(super) struct Builds {
    known: HashMap<FileId, Known>,
    /// The one that was asked for last is kept: whoever asks whether to attach will want it again.
    last: Option<Rc<Build>>,
    /// Extensions; else why nothing of them is to be probed.
    extensions: HashMap<FileId, Result<Rc<ExtensionBuild>, String>>,
}

/// One build of an extension, read and understood.
pub(super) struct ExtensionBuild {
    /// What of it is loaded, and where.
    pub segments: Vec<Segment>,
    /// What to probe.
    pub plan: ExtensionPlan,
}

impl Builds {
    /// The build of a program. Only one that is not known is read, which takes some hundred milliseconds. With `poll_stack`,
    /// parents are to be found by poll probes.
    ///
    /// # Errors
    /// There is no runtime in it, or nothing of it can be probed.
    pub fn of(&mut self, id: FileId, file: &File, poll_stack: bool) -> Result<Found, Refusal> {
        self.find(id, || {
            // SAFETY: the file is a running program's: the kernel refuses to write to it or to truncate it (ETXTBSY).
            let file = unsafe { Mmap::map(file) }.map_err(Refusal::broken)?;
            let binary = Binary::parse(&file).map_err(Refusal::unsupported)?;
            if let Some((runtime, is)) = library_of(&binary) {
                return Ok(Found::InLibrary(runtime, is));
            }
            let mut build = read(&binary, poll_stack)?;
            drop(binary);
            build.file = Some(file);
            build.forget_pages();
            Ok(Found::Here(Rc::new(build)))
        })
    }

    /// The build of a library.
    ///
    /// # Errors
    /// There is no runtime in it, or nothing of it can be probed.
    pub fn of_library(&mut self, library: &Image, poll_stack: bool) -> Result<Rc<Build>, Refusal> {
        let found = self.find(library.file_id, || {
            let bytes = library.read_library().map_err(Refusal::unsupported)?;
            let binary = Binary::parse(&bytes).map_err(Refusal::unsupported)?;
            read(&binary, poll_stack).map(|build| Found::Here(Rc::new(build)))
        })?;
        match found {
            Found::Here(build) => Ok(build),
            Found::InLibrary(..) => Err(Refusal::unsupported("the runtime's library has it in yet another library")),
        }
    }

    /// The build of an extension.
    ///
    /// # Errors
    /// Nothing of it can be probed.
    pub fn of_extension(&mut self, extension: &Extension, library: &Image) -> Result<Rc<ExtensionBuild>, String> {
        if let Some(known) = self.extensions.get(&library.file_id) {
            return known.clone();
        }
        if self.extensions.len() >= MOST {
            self.extensions.clear();
        }
        let read = || -> Result<Rc<ExtensionBuild>, String> {
            let bytes = library.read_library()?;
            let binary = Binary::parse(&bytes).map_err(|e| e.to_string())?;
            Ok(Rc::new(ExtensionBuild { segments: binary.segments.clone(), plan: (extension.plan)(&binary)? }))
        };
        let build = read();
        self.extensions.insert(library.file_id, build.clone());
        build
    }

    fn find(&mut self, id: FileId, read: impl FnOnce() -> Result<Found, Refusal>) -> Result<Found, Refusal> {
        let there = match self.known.get(&id) {
            Some(Known::Build(build)) => build.upgrade().map(Found::Here),
            Some(Known::InLibrary(runtime, is)) => Some(Found::InLibrary(*runtime, *is)),
            Some(Known::Nothing(refusal)) => return Err(refusal.clone()),
            None => None,
        };
        if let Some(found) = there {
            return Ok(self.keep(found));
        }
        if self.known.len() >= MOST {
            self.known.retain(|_, known| matches!(known, Known::Build(build) if build.strong_count() > 0));
        }
        match read() {
            Ok(found) => {
                let known = match &found {
                    Found::Here(build) => Known::Build(Rc::downgrade(build)),
                    Found::InLibrary(runtime, is) => Known::InLibrary(*runtime, *is),
                };
                self.known.insert(id, known);
                Ok(self.keep(found))
            }
            Err(refusal) => {
                self.known.insert(id, Known::Nothing(refusal.clone()));
                Err(refusal)
            }
        }
    }

    fn keep(&mut self, found: Found) -> Found {
        if let Found::Here(build) = &found {
            self.last = Some(Rc::clone(build));
        }
        found
    }
}

fn read(binary: &Binary<'_>, poll_stack: bool) -> Result<Build, Refusal> {
    let (runtime, plan) = plan(binary, poll_stack)?;
    let unwinder = Unwinder::of(binary);
    let walk = runtime.walk(binary);
    let segments = binary.segments.clone();
    let types = plan.types.iter().map(type_info).collect();
    Ok(Build { file: None, segments, runtime, plan, types, unwinder, walk, paths: Paths::default() })
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
        ..Refusal::unsupported("no known runtime was recognised: the kernel's signals are measured")
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

/// A type as the model keeps it.
pub(super) fn type_info(kind: &TaskType) -> TypeInfo {
    TypeInfo {
        name: kind.name.clone(),
        full_name: kind.full_name.clone(),
        aliases: kind.aliases.clone(),
        blocking: kind.blocking,
        internal: kind.internal,
        spawn_sites: kind.spawn_sites.iter().map(site_info).collect(),
    }
}

/// A spawn site as the model keeps it.
pub(super) fn site_info(site: &SpawnSite) -> SiteInfo {
    let exact = matches!(site, SpawnSite::Line { .. });
    SiteInfo { name: site.short(), place: site.to_string(), exact }
}
