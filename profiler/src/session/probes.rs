//! The task probes of one build in one process. Never which process, never what its records mean.

use std::collections::HashMap;
use std::path::PathBuf;

use profiler_common::map::Cookie;

use crate::kernel::KernelError;
use crate::kernel::attach::Links;
use crate::kernel::load::Kernel;
use crate::kernel::uprobe::{Mechanism, Site};
use crate::runtime::{Hook, Plan, ProbeSpec};

const HOOKS: [Hook; 4] = [Hook::Complete, Hook::PollEnd, Hook::PollStart, Hook::Spawn];

/// Attached probes. The kernel half ignores their hits unless the process's entry says that tasks are wanted, so that
/// neither their order nor the time that it takes matters.
pub(super) struct Probes {
    file: PathBuf,
    mechanism: Mechanism,
    by_process: HashMap<u32, Links>,
}

impl Probes {
    /// Decides how the plan's probes are attached. Attaches none.
    ///
    /// # Errors
    /// This kernel cannot attach so many.
    pub fn new(kernel: &Kernel, plan: &Plan, file: PathBuf) -> Result<Probes, String> {
        if plan.probes.len() > usize::from(u16::MAX) {
            return Err(format!("{} probes are more than can be told apart", plan.probes.len()));
        }
        let mechanism = kernel.uprobe_mechanism(plan.probes.len())?;
        Ok(Probes { file, mechanism, by_process: HashMap::new() })
    }

    /// How they are attached, for people.
    pub fn mechanism(&self) -> &'static str {
        match self.mechanism {
            Mechanism::Multi => "one uprobe_multi link per kind",
            Mechanism::PerfEvents => "perf-event uprobes",
        }
    }

    /// Attaches all of the plan's probes to one process.
    ///
    /// # Errors
    /// The kernel refuses; nothing of this call is left attached.
    pub fn attach(&mut self, kernel: &mut Kernel, plan: &Plan, pid: u32) -> Result<(), KernelError> {
        let mut attached = Links::default();
        for hook in HOOKS {
            let sites: Vec<Site> = plan
                .probes
                .iter()
                .enumerate()
                .filter(|(_, probe)| probe.hook == hook)
                .map(|(number, probe)| Site { offset: probe.file_offset, cookie: cookie(plan, number, probe) })
                .collect();
            if !sites.is_empty() {
                attached.absorb(kernel.attach_uprobes(program(hook), self.mechanism, &self.file, &sites, Some(pid))?);
            }
        }
        self.by_process.insert(pid, attached);
        Ok(())
    }

    /// Whether a process has probes.
    pub fn covers(&self, pid: u32) -> bool {
        self.by_process.contains_key(&pid)
    }

    /// Takes the probes off one process: they are detached when what is returned is dropped.
    pub fn take(&mut self, pid: u32) -> Links {
        self.by_process.remove(&pid).unwrap_or_default()
    }

    /// Takes the probes off all processes.
    pub fn take_all(&mut self) -> Links {
        let mut all = Links::default();
        for (_, links) in self.by_process.drain() {
            all.absorb(links);
        }
        all
    }
}

/// The kernel half is told at each hit which site it was, and where its task is.
fn cookie(plan: &Plan, number: usize, probe: &ProbeSpec) -> u64 {
    let cookie = Cookie::new(probe.argument, probe.displacement, probe.id, probe.kind.is_some(), number as u16);
    if plan.wants_stacks(probe) { cookie.with_stacks().0 } else { cookie.0 }
}

const fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::Spawn => "task_spawn",
        Hook::Complete => "task_complete",
        Hook::PollStart => "task_poll_start",
        Hook::PollEnd => "task_poll_end",
    }
}
