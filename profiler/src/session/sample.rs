//! The CPU clock that samples all targets: whether it ticks, and where its samples go. Never what they mean.

use std::collections::{BTreeMap, BTreeSet};

use profiler_common::event::SAMPLE_PERIOD_NS;

use super::target::Watched;
use super::targets::Targets;
use crate::decode::Sample;
use crate::kernel::KernelError;
use crate::kernel::attach::Links;
use crate::kernel::clock::ClockError;
use crate::kernel::load::Kernel;
use crate::model::table::Table;
use crate::status::ProbeState;

/// The clocks of the CPUs on which a target may run, or why there are none.
pub(super) struct Clock(Result<BTreeMap<u32, Links>, (ProbeState, String)>);

impl Clock {
    /// Makes ready to sample. No CPU is sampled yet.
    pub fn new(kernel: &mut Kernel) -> Clock {
        Clock(kernel.load_clock().map(|()| BTreeMap::new()).map_err(|error| {
            let state = match error {
                ClockError::Unsupported(_) => ProbeState::Unsupported,
                ClockError::Kernel(_) => ProbeState::Broken,
            };
            (state, error.to_string())
        }))
    }

    /// Samples these CPUs from now on, and no others: a CPU on which no target may run is not interrupted. Returns what is
    /// to be detached.
    pub fn follow(&mut self, kernel: &mut Kernel, cpus: &BTreeSet<u32>) -> Links {
        let Ok(clocks) = &mut self.0 else { return Links::default() };
        let mut gone = Links::default();
        clocks.extract_if(.., |cpu, _| !cpus.contains(cpu)).for_each(|(_, links)| gone.absorb(links));
        for &cpu in cpus {
            if clocks.contains_key(&cpu) {
                continue;
            }
            match kernel.attach_clock(cpu) {
                Ok(links) => drop(clocks.insert(cpu, links)),
                // It went offline a moment ago.
                Err(KernelError::System { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {}
                Err(e) => {
                    clocks.values_mut().for_each(|links| gone.absorb(std::mem::take(links)));
                    self.0 = Err((ProbeState::Broken, e.to_string()));
                    break;
                }
            }
        }
        gone
    }

    /// How it stands: a row of each target's status.
    pub fn state(&self) -> (ProbeState, &str) {
        match &self.0 {
            Ok(_) => (ProbeState::Attached, "sampled at 99 Hz by the CPU clock"),
            Err((state, why)) => (*state, why),
        }
    }

    /// Hands the clocks over to be stopped.
    pub fn take(&mut self) -> Links {
        let stopped = Err((ProbeState::Detached, "stopped".to_owned()));
        let mut links = Links::default();
        for clock in std::mem::replace(&mut self.0, stopped).into_iter().flat_map(BTreeMap::into_values) {
            links.absorb(clock);
        }
        links
    }
}

/// Passes a sample on to the table; false where it is of no process that is known.
pub(super) fn take(sample: &Sample, targets: &Targets, table: &mut Table) -> bool {
    let header = &sample.head.header;
    let Some(probed) = targets.of(header.pid).and_then(Watched::probed) else { return false };
    let stands_for_ns = SAMPLE_PERIOD_NS * (1 + u64::from(sample.head.missed));
    let neutral = probed.instance().attribute(&sample.head, &sample.stack, stands_for_ns);
    table.sample(probed.table_id(), header.time_ns, neutral);
    true
}
