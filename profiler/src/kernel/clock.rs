//! The sampling clock: one perf event per CPU, on which one program runs. Never what a sample means.

use std::os::fd::AsFd as _;

use aya::programs::{PerfEvent, ProgramError};

use super::attach::Links;
use super::feature::NO_USER_REGISTERS;
use super::load::Kernel;
use super::{KernelError, bpf, perf};

/// 99 Hz: no multiple of the frequencies at which programs and kernels tick.
pub const PERIOD_NS: u64 = 10_101_010;

/// Why the clock does not tick.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// This kernel lacks what its program needs.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Kernel {
    /// Samples every CPU that is online now, each [`PERIOD_NS`] of its time.
    ///
    /// # Errors
    /// The kernel cannot, or refuses; then no CPU is sampled.
    pub fn attach_clock(&mut self) -> Result<Links, ClockError> {
        const PROGRAM: &str = "cpu_clock";
        if !self.features.user_registers {
            return Err(ClockError::Unsupported(NO_USER_REGISTERS));
        }
        let failed = |source: ProgramError| KernelError::Program { program: PROGRAM, source };
        let loaded: &mut PerfEvent =
            self.ebpf.program_mut(PROGRAM).ok_or(KernelError::Missing(PROGRAM))?.try_into().map_err(failed)?;
        loaded.load().map_err(failed)?;
        let program = loaded.fd().map_err(failed)?.as_fd();
        let cpus = aya::util::online_cpus()
            .map_err(|(_, source)| KernelError::System { what: "list the CPUs that are online".to_owned(), source })?;
        let mut links = Links::default();
        for cpu in cpus {
            let system = |source| KernelError::System { what: format!("open the clock of CPU {cpu}"), source };
            let event = perf::cpu_clock(cpu, PERIOD_NS).map_err(system)?;
            let link = bpf::link_perf_event(program, event.as_fd(), 0).map_err(system)?;
            links.push(vec![link, event]);
        }
        Ok(links)
    }
}
