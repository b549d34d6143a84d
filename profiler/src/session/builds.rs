//! Builds of programs that were read: what is to be probed in each, shared by all processes that run it. Never a process.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Weak};

use memmap2::Mmap;

use super::image::Refusal;
use crate::model::task::{SiteInfo, TypeInfo};
use crate::runtime::{Lineage, Plan, RUNTIMES, Runtime, SpawnSite, TaskType};
use crate::status::ProbeState;
use crate::target::elf::Binary;
use crate::target::process::FileId;
use crate::target::unwind::Unwinder;

/// Files that are remembered: a node runs some hundred programs, and most of them have no runtime that is known.
const MOST: usize = 1024;

/// One build, read and understood.
pub(super) struct Build {
    /// The executable.
    pub file: Mmap,
    /// Whose it is.
    pub runtime: &'static dyn Runtime,
    /// What to probe.
    pub plan: Plan,
    /// The types of tasks, as the model keeps them.
    pub types: Arc<[TypeInfo]>,
    /// What unwinds the stacks of its threads.
    pub unwinder: Option<Unwinder>,
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
    last: Option<Arc<Build>>,
}

impl Builds {
    /// The build of a file. Only one that is not known is read, which takes some hundred milliseconds. With `poll_stack`,
    /// parents are to be found by poll probes.
    ///
    /// # Errors
    /// There is no runtime in it, or nothing of it can be probed.
    pub fn of(&mut self, id: FileId, file: &File, poll_stack: bool) -> Result<Arc<Build>, Refusal> {
        match self.known.get(&id) {
            Some(Known::Build(build)) => {
                if let Some(build) = build.upgrade() {
                    self.last = Some(Arc::clone(&build));
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
                let build = Arc::new(build);
                self.known.insert(id, Known::Build(Arc::downgrade(&build)));
                self.last = Some(Arc::clone(&build));
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
    drop(binary);
    let types = plan.types.iter().map(type_info).collect();
    Ok(Build { file, runtime, plan, types, unwinder })
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
