//! The sampling clock: a perf event per CPU, on which one program runs. Never what a sample means, or which CPUs.

use std::os::fd::AsFd as _;

use aya::programs::{PerfEvent, ProgramError};
use profiler_common::event::SAMPLE_PERIOD_NS;

use super::KernelError;
use super::attach::Links;
use super::load::Kernel;
use super::signal::TASK_CPU;

const PROGRAM: &str = "cpu_clock";
/// Debian's kernels want more than CAP_PERFMON for any perf event there.
const REMEDY: &str = " (where kernel.perf_event_paranoid is 3, CAP_SYS_ADMIN is needed)";

/// Why the clock does not tick.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// This kernel lacks what its program needs.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Kernel {
    /// Loads the sampling program.
    ///
    /// # Errors
    /// The kernel cannot sample, or refuses the program.
    pub fn load_clock(&mut self) -> Result<(), ClockError> {
        self.signals.way(TASK_CPU).map_err(ClockError::Unsupported)?;
        let program = self.clock_program()?;
        Ok(program.load().map_err(failed)?)
    }

    /// Samples a CPU that is online, each [`SAMPLE_PERIOD_NS`] of its time.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_clock(&mut self, cpu: u32) -> Result<Links, KernelError> {
        let holder = self.holder()?;
        let program = self.clock_program()?.fd().map_err(failed)?.as_fd();
        let held = holder
            .clock(program, cpu, SAMPLE_PERIOD_NS)
            .map_err(|source| KernelError::System { what: format!("open the clock of CPU {cpu}{REMEDY}"), source })?;
        Ok(Links::of(vec![held]))
    }

    fn clock_program(&mut self) -> Result<&mut PerfEvent, KernelError> {
        self.ebpf.program_mut(PROGRAM).ok_or(KernelError::Missing(PROGRAM))?.try_into().map_err(failed)
    }
}

/// All CPUs that are online; none where the kernel does not say.
pub fn online_cpus() -> Vec<u32> {
    aya::util::online_cpus().unwrap_or_default()
}

fn failed(source: ProgramError) -> KernelError {
    KernelError::Program { program: PROGRAM, source }
}
