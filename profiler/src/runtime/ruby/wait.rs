//! Where a fiber is about to wait: what calls the fiber scheduler of the program. scheduler.c.

use iced_x86::Register;
use profiler_common::coroutine::wait;

use crate::target::elf::Binary;
use crate::target::site::{self, Site};

/// What is exported, and what it waits for.
const CALLS: [(&str, u32); 9] = [
    ("rb_fiber_scheduler_kernel_sleep", wait::SLEEP),
    ("rb_fiber_scheduler_kernel_sleepv", wait::SLEEP),
    ("rb_fiber_scheduler_block", wait::BLOCK),
    ("rb_fiber_scheduler_io_wait", wait::IO_WAIT),
    ("rb_fiber_scheduler_io_select", wait::IO_WAIT),
    ("rb_fiber_scheduler_io_read", wait::IO_READ),
    ("rb_fiber_scheduler_io_write", wait::IO_WRITE),
    ("rb_fiber_scheduler_process_wait", wait::PROCESS),
    ("rb_fiber_scheduler_address_resolve", wait::RESOLVE),
];

/// The sites, each with what is waited for, and the names of those that would be dear to probe.
pub fn sites(binary: &Binary<'_>) -> (Vec<(Site, u32)>, Vec<&'static str>) {
    let (mut found, mut dear) = (Vec::new(), Vec::new());
    for (name, reason) in CALLS {
        let Some(address) = binary.exported(name) else { continue };
        let function = binary.function_at(address).filter(|function| function.start == address);
        match function.and_then(|function| site::from_entry(binary, function, Register::RDI)) {
            Some(site) if site.emulated => found.push((site, reason)),
            _ => dear.push(name),
        }
    }
    (found, dear)
}
