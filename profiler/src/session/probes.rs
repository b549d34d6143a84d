//! The task probes of one build in one process. Never which process, never what its records mean.

use std::collections::HashMap;
use std::path::PathBuf;

use profiler_common::map::Cookie;

use crate::kernel::KernelError;
use crate::kernel::load::Kernel;
use crate::kernel::uprobe::{Mechanism, Site, Uprobes};
use crate::runtime::{Hook, Plan, ProbeSpec};

/// The order in which hooks are attached. Ends before births: a task whose birth alone is seen would live for ever.
const ORDER: [Hook; 4] = [Hook::Complete, Hook::PollEnd, Hook::PollStart, Hook::Spawn];

/// Attached probes; dropped, births go first.
pub(super) struct Probes {
    file: PathBuf,
    mechanism: Mechanism,
    by_process: HashMap<u32, Vec<Uprobes>>,
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
        let mut attached = Vec::with_capacity(ORDER.len());
        for hook in ORDER {
            let sites: Vec<Site> = plan
                .probes
                .iter()
                .enumerate()
                .filter(|(_, probe)| probe.hook == hook)
                .map(|(number, probe)| Site { offset: probe.file_offset, cookie: cookie(number, probe) })
                .collect();
            if !sites.is_empty() {
                attached.push(kernel.attach_uprobes(program(hook), self.mechanism, &self.file, &sites, Some(pid))?);
            }
        }
        self.by_process.insert(pid, attached);
        Ok(())
    }

    /// Whether a process has probes.
    pub fn covers(&self, pid: u32) -> bool {
        self.by_process.contains_key(&pid)
    }

    /// Detaches from one process.
    pub fn detach(&mut self, pid: u32) {
        if let Some(mut probes) = self.by_process.remove(&pid) {
            while probes.pop().is_some() {}
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let pids: Vec<u32> = self.by_process.keys().copied().collect();
        for pid in pids {
            self.detach(pid);
        }
    }
}

/// The kernel half is told at each hit which site it was, and where its task is.
fn cookie(number: usize, probe: &ProbeSpec) -> u64 {
    Cookie::new(probe.argument, probe.displacement, probe.id, probe.kind.is_some(), number as u16).0
}

const fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::Spawn => "task_spawn",
        Hook::Complete => "task_complete",
        Hook::PollStart => "task_poll_start",
        Hook::PollEnd => "task_poll_end",
    }
}
