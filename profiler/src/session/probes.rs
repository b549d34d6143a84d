//! The task probes of one build in its processes, by tier. Never which tier is wanted, never what its records mean.

use std::collections::HashMap;
use std::path::Path;

use profiler_common::map::Cookie;

use crate::budget::governor::Tier;
use crate::kernel::KernelError;
use crate::kernel::attach::Links;
use crate::kernel::load::Kernel;
use crate::kernel::uprobe::{Mechanism, Prepared, Site};
use crate::runtime::{Hook, Lineage, Plan, ProbeSpec};

/// The probes of each tier, and where they are attached. The kernel half ignores their hits unless the process's entry
/// says that they are wanted, so that neither their order nor the time that it takes matters.
pub(super) struct Probes {
    mechanism: Mechanism,
    prepared: [Vec<Prepared>; 2],
    sites: [usize; 2],
    /// Whether a tier is attached to the processes.
    open: [bool; 2],
    by_process: HashMap<u32, [Option<Links>; 2]>,
}

impl Probes {
    /// Gets the plan's probes ready. Attaches none.
    ///
    /// # Errors
    /// This kernel cannot attach those of births and ends.
    pub fn new(kernel: &mut Kernel, plan: &Plan, file: &Path) -> Result<Probes, String> {
        if plan.probes.len() > usize::from(u16::MAX) {
            return Err(format!("{} probes are more than can be told apart", plan.probes.len()));
        }
        let count = |tier| plan.probes.iter().filter(|probe| tier_of(probe.hook, plan.lineage) == tier).count();
        let sites = Tier::ALL.map(count);
        let mechanism = kernel.uprobe_mechanism(sites[Tier::Lifecycle as usize])?;
        let mut probes = Probes {
            mechanism,
            prepared: [Vec::new(), Vec::new()],
            sites,
            open: [false; 2],
            by_process: HashMap::new(),
        };
        for tier in Tier::ALL {
            if tier == Tier::Polls && mechanism == Mechanism::PerfEvents {
                // They come and go with the budget: detaching them one by one takes seconds.
                probes.sites[tier as usize] = 0;
                continue;
            }
            for hook in Hook::ALL.into_iter().filter(|&hook| tier_of(hook, plan.lineage) == tier) {
                let sites = sites_of(plan, hook);
                if !sites.is_empty() {
                    let prepared = kernel.prepare_uprobes(program(hook), mechanism, file, sites);
                    probes.prepared[tier as usize].push(prepared.map_err(|e| e.to_string())?);
                }
            }
        }
        Ok(probes)
    }

    /// Adds probes of another file, of which none is of polls, and attaches them where their tier is.
    ///
    /// # Errors
    /// The kernel refuses; nothing of this call is left attached.
    pub fn add(&mut self, kernel: &mut Kernel, specs: &[ProbeSpec], file: &Path) -> Result<(), KernelError> {
        const TIER: usize = Tier::Lifecycle as usize;
        let mut added = Vec::new();
        for hook in Hook::ALL {
            let sites: Vec<Site> =
                specs.iter().filter(|probe| probe.hook == hook).map(|probe| site(probe, 0)).collect();
            if !sites.is_empty() {
                added.push(kernel.prepare_uprobes(program(hook), self.mechanism, file, sites)?);
            }
        }
        if self.open[TIER] {
            self.attach_everywhere(Tier::Lifecycle, &added)?;
        }
        self.prepared[TIER].extend(added);
        self.sites[TIER] += specs.len();
        Ok(())
    }

    /// How they are attached, for people.
    pub fn mechanism(&self) -> &'static str {
        match self.mechanism {
            Mechanism::Multi => "one uprobe_multi link per kind",
            Mechanism::PerfEvents => "perf-event uprobes",
        }
    }

    /// Number of sites of a tier; 0 where it cannot be attached.
    pub fn sites(&self, tier: Tier) -> usize {
        self.sites[tier as usize]
    }

    /// Whether a tier is attached.
    pub fn is_open(&self, tier: Tier) -> bool {
        self.open[tier as usize]
    }

    /// Attaches the tiers that are open to one more process.
    ///
    /// # Errors
    /// The kernel refuses; nothing of this call is left attached.
    pub fn cover(&mut self, pid: u32) -> Result<(), KernelError> {
        let mut links = [None, None];
        for tier in Tier::ALL.into_iter().filter(|&tier| self.open[tier as usize]) {
            links[tier as usize] = Some(self.attach(tier, pid)?);
        }
        self.by_process.insert(pid, links);
        Ok(())
    }

    /// Attaches a tier to all processes.
    ///
    /// # Errors
    /// The kernel refuses; nothing of this call is left attached.
    pub fn open(&mut self, tier: Tier) -> Result<(), KernelError> {
        let prepared = std::mem::take(&mut self.prepared[tier as usize]);
        let attached = self.attach_everywhere(tier, &prepared);
        self.prepared[tier as usize] = prepared;
        attached?;
        self.open[tier as usize] = true;
        Ok(())
    }

    /// Attaches some of a tier's probes to all processes, or to none.
    fn attach_everywhere(&mut self, tier: Tier, prepared: &[Prepared]) -> Result<(), KernelError> {
        let attach = |&pid: &u32| Ok((pid, attach_all(prepared, pid)?));
        let links = self.by_process.keys().map(attach).collect::<Result<Vec<_>, KernelError>>()?;
        for (pid, links) in links {
            if let Some(process) = self.by_process.get_mut(&pid) {
                process[tier as usize].get_or_insert_default().absorb(links);
            }
        }
        Ok(())
    }

    /// Takes a tier off all processes: it is detached when what is returned is dropped.
    pub fn close(&mut self, tier: Tier) -> Links {
        self.open[tier as usize] = false;
        let mut all = Links::default();
        for process in self.by_process.values_mut() {
            all.absorb(process[tier as usize].take().unwrap_or_default());
        }
        all
    }

    fn attach(&self, tier: Tier, pid: u32) -> Result<Links, KernelError> {
        attach_all(&self.prepared[tier as usize], pid)
    }

    /// The processes that have probes.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_process.keys().copied()
    }

    /// Whether a process has probes.
    pub fn covers(&self, pid: u32) -> bool {
        self.by_process.contains_key(&pid)
    }

    /// Takes the probes off one process: they are detached when what is returned is dropped.
    pub fn take(&mut self, pid: u32) -> Links {
        let mut links = Links::default();
        self.by_process.remove(&pid).into_iter().flatten().flatten().for_each(|tier| links.absorb(tier));
        links
    }

    /// Takes the probes off all processes.
    pub fn take_all(&mut self) -> Links {
        let pids: Vec<u32> = self.by_process.keys().copied().collect();
        let mut all = Links::default();
        pids.into_iter().for_each(|pid| all.absorb(self.take(pid)));
        all
    }

    /// The same for good: no process comes any more.
    pub fn end(&mut self) -> Links {
        self.open = [false; 2];
        self.prepared = [Vec::new(), Vec::new()];
        self.take_all()
    }
}

fn attach_all(prepared: &[Prepared], pid: u32) -> Result<Links, KernelError> {
    let mut links = Links::default();
    for prepared in prepared {
        links.absorb(prepared.attach(Some(pid))?);
    }
    Ok(links)
}

/// The tier of a hook: where parents are found by polls, these belong to births.
fn tier_of(hook: Hook, lineage: Lineage) -> Tier {
    match hook {
        Hook::Spawn | Hook::Complete | Hook::Transfer | Hook::Pause | Hook::Deferred => Tier::Lifecycle,
        Hook::PollStart | Hook::PollEnd if lineage == Lineage::PollStack => Tier::Lifecycle,
        _ => Tier::Polls,
    }
}

fn sites_of(plan: &Plan, hook: Hook) -> Vec<Site> {
    let numbered = plan.probes.iter().enumerate().filter(|(_, probe)| probe.hook == hook);
    let site = |(number, probe): (usize, &ProbeSpec)| {
        let Site { offset, cookie } = site(probe, number as u16);
        let cookie = if plan.wants_stacks(probe) { Cookie(cookie).with_stacks().0 } else { cookie };
        Site { offset, cookie }
    };
    numbered.map(site).collect()
}

/// The kernel half is told at each hit which site it was, and where its task is.
fn site(probe: &ProbeSpec, number: u16) -> Site {
    let cookie = Cookie::new(probe.argument, probe.displacement, probe.id, probe.kind.is_some(), number);
    Site { offset: probe.file_offset, cookie: cookie.0 }
}

/// All programs of task probes.
pub(super) fn programs() -> impl Iterator<Item = &'static str> {
    Hook::ALL.into_iter().map(program)
}

const fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::Spawn => "task_spawn",
        Hook::Complete => "task_complete",
        Hook::PollStart => "task_poll_start",
        Hook::PollEnd => "task_poll_end",
        Hook::WakeByValue => "task_wake_by_value",
        Hook::WakeByRef => "task_wake_by_ref",
        Hook::Transfer => "task_transfer",
        Hook::Pause => "gc_pause",
        Hook::Wait => "task_wait",
        Hook::Lock => "lock_wait",
        Hook::Deferred => "deferred_work",
    }
}
