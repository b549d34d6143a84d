//! Builds of programs that were read: what is to be probed in each, shared by all processes that run it. Never a process.

use std::collections::HashMap;
use std::fs::File;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use super::image::Refusal;
use super::sites::Paths;
use crate::model::task::{SiteInfo, TypeInfo};
use crate::runtime::{Lineage, Plan, RUNTIMES, Runtime, SpawnSite, TaskType, WalkAt};
use crate::status::ProbeState;
use crate::target::elf::{Binary, Segment};
use crate::target::process::FileId;
use crate::target::unwind::Unwinder;

/// Files that are remembered: a node runs some hundred programs, and most of them have no runtime that is known.
const MOST: usize = 1024;

/// One build, read and understood.
pub(super) struct Build {
    /// The executable.
    pub file: Mmap,
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
        // SAFETY: the mapping is of a file and never written to: its pages are the file's, before and after.
        if let Err(e) = unsafe { self.file.unchecked_advise(UncheckedAdvice::DontNeed) } {
            log::debug!("failed to give back the pages of an executable: {e}");
        }
    }
}

/// What became of a file that was read.
enum Known {
    /// It is there for as long as a process is watched that runs it.
    Build(Weak<Build>),
    /// There is nothing to be probed in it, and why.
    Nothing(Refusal),
}

/// The builds that are known.
#[derive(Default)]
pub(super) struct Builds {
    known: HashMap<FileId, Known>,
    /// The one that was asked for last is kept: whoever asks whether to attach will want it again.
    last: Option<Rc<Build>>,
}

impl Builds {
    /// The build of a file. Only one that is not known is read, which takes some hundred milliseconds. With `poll_stack`,
    /// parents are to be found by poll probes.
    ///
    /// # Errors
    /// There is no runtime in it, or nothing of it can be probed.
    pub fn of(&mut self, id: FileId, file: &File, poll_stack: bool) -> Result<Rc<Build>, Refusal> {
        match self.known.get(&id) {
            Some(Known::Build(build)) => {
                if let Some(build) = build.upgrade() {
                    self.last = Some(Rc::clone(&build));
                    return Ok(build);
                }
            }
            Some(Known::Nothing(refusal)) => return Err(refusal.clone()),
            None => {}
        }
        if self.known.len() >= MOST {
            self.known.retain(|_, known| matches!(known, Known::Build(build) if build.strong_count() > 0));
        }
        // SAFETY: the file is a running program's: the kernel refuses to write to it or to truncate it (ETXTBSY).
        let data = unsafe { Mmap::map(file) }.map_err(Refusal::broken)?;
        match read(data, poll_stack) {
            Ok(build) => {
                let build = Rc::new(build);
                self.known.insert(id, Known::Build(Rc::downgrade(&build)));
                self.last = Some(Rc::clone(&build));
                Ok(build)
            }
            Err(refusal) => {
                self.known.insert(id, Known::Nothing(refusal.clone()));
                Err(refusal)
            }
        }
    }
}

fn read(file: Mmap, poll_stack: bool) -> Result<Build, Refusal> {
    let binary = Binary::parse(&file).map_err(Refusal::unsupported)?;
    let (runtime, plan) = plan(&binary, poll_stack)?;
    let unwinder = Unwinder::of(&binary);
    let walk = runtime.walk(&binary);
    let segments = binary.segments;
    let types = plan.types.iter().map(type_info).collect();
    let build = Build { file, segments, runtime, plan, types, unwinder, walk, paths: Paths::default() };
    build.forget_pages();
    Ok(build)
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

fn type_info(kind: &TaskType) -> TypeInfo {
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
