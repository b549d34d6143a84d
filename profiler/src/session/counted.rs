//! What the kernel half has counted by slot: read once for all targets. Never what is made of it.

use std::collections::HashMap;

use crate::histogram::Histogram;
use crate::kernel::KernelError;
use crate::kernel::deferred::DeferredNow;
use crate::kernel::load::Kernel;
use crate::kernel::polls::TypePolls;
use crate::kernel::request::OpenRequests;

/// What all slots have.
pub(super) struct Counted {
    polls: HashMap<u32, Vec<TypePolls>>,
    durations: HashMap<u32, HashMap<u32, Histogram>>,
    open: HashMap<u32, OpenRequests>,
    deferred: HashMap<u32, DeferredNow>,
}

/// What one slot has.
#[derive(Default)]
pub(super) struct OfSlot {
    /// Polls and wakes by type.
    pub polls: Vec<TypePolls>,
    /// What its threads do just now for those who ask something of it.
    pub open: OpenRequests,
    /// Deferred work.
    pub deferred: DeferredNow,
    durations: HashMap<u32, Histogram>,
}

impl Counted {
    /// Reads all; what cannot be read is missing, and the log says so. Open requests and deferred work only where there are any.
    pub fn read(kernel: &mut Kernel, requests: bool, deferred: bool) -> Counted {
        Counted {
            polls: or_none(kernel.types()),
            durations: or_none(kernel.durations()),
            open: if requests { or_none(kernel.open_requests()) } else { HashMap::new() },
            deferred: if deferred { or_none(kernel.deferred()) } else { HashMap::new() },
        }
    }

    /// Takes what a slot has.
    pub fn take(&mut self, slot: u32) -> OfSlot {
        OfSlot {
            polls: self.polls.remove(&slot).unwrap_or_default(),
            open: self.open.remove(&slot).unwrap_or_default(),
            deferred: self.deferred.remove(&slot).unwrap_or_default(),
            durations: self.durations.remove(&slot).unwrap_or_default(),
        }
    }
}

impl OfSlot {
    /// Durations of one kind, nanoseconds; none where there was none.
    pub fn durations(&mut self, kind: u32) -> Histogram {
        self.durations.remove(&kind).unwrap_or(Histogram::EMPTY)
    }
}

fn or_none<T>(read: Result<HashMap<u32, T>, KernelError>) -> HashMap<u32, T> {
    read.unwrap_or_else(|e| {
        log::warn!("{e}");
        HashMap::new()
    })
}
