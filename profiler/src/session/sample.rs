//! The CPU clock that samples all targets: whether it ticks, and where its samples go. Never what they mean.

use std::collections::HashMap;

use super::target::Watched;
use crate::decode::Sample;
use crate::kernel::attach::Links;
use crate::kernel::clock::{ClockError, PERIOD_NS};
use crate::kernel::load::Kernel;
use crate::model::table::Table;
use crate::status::ProbeState;

/// The clock, or why there is none.
pub(super) struct Clock(Result<Links, (ProbeState, String)>);

impl Clock {
    /// Starts the clock. Targets are sampled once their entries say so.
    pub fn start(kernel: &mut Kernel) -> Clock {
        Clock(kernel.attach_clock().map_err(|error| {
            let state = match error {
                ClockError::Unsupported(_) => ProbeState::Unsupported,
                ClockError::Kernel(_) => ProbeState::Broken,
            };
            (state, error.to_string())
        }))
    }

    /// How it stands: a row of each target's status.
    pub fn state(&self) -> (ProbeState, &str) {
        match &self.0 {
            Ok(_) => (ProbeState::Attached, "sampled at 99 Hz by the CPU clock"),
            Err((state, why)) => (*state, why),
        }
    }

    /// Hands the clock over to be stopped.
    pub fn take(&mut self) -> Links {
        let stopped = Err((ProbeState::Detached, "stopped".to_owned()));
        std::mem::replace(&mut self.0, stopped).unwrap_or_default()
    }
}

/// Passes a sample on to the table; false where it is of no process that is known.
pub(super) fn take(sample: &Sample, targets: &[Watched], by_pid: &HashMap<u32, usize>, table: &mut Table) -> bool {
    let header = &sample.head.header;
    let Some(probed) = by_pid.get(&header.pid).and_then(|&index| targets[index].probed()) else { return false };
    let neutral = probed.instance().attribute(&sample.head, &sample.stack, PERIOD_NS);
    table.sample(probed.table_id(), header.time_ns, neutral);
    true
}
