//! The extension that a watched process's runtime may have loaded: looked for, and probed. Never what it does.

use super::super::builds::Builds;
use super::super::image;
use super::budget::measured;
use super::{Runtime, Watched};
use crate::budget::governor::Tier;
use crate::kernel::load::Kernel;
use crate::status::ProbeState;

/// The row of the status.
pub(super) const ROW: &str = "deferred";
/// It is looked for again after so long, then after twice as long each time, and no more after a minute: a program loads what
/// it needs as it begins. Nanoseconds.
const AGAIN_NS: u64 = 1_000_000_000;
const LONGEST_NS: u64 = 64 * AGAIN_NS;

/// When it is looked for.
#[derive(Clone, Copy)]
pub(super) struct Lookout {
    /// The next time.
    next_ns: u64,
    /// How long after that again.
    again_ns: u64,
}

impl Lookout {
    /// At the next occasion.
    pub const SOON: Lookout = Lookout { next_ns: 0, again_ns: AGAIN_NS };
    /// No more.
    const NEVER: Lookout = Lookout { next_ns: u64::MAX, again_ns: LONGEST_NS };

    fn later(self, now_ns: u64) -> Lookout {
        match self.again_ns {
            ..LONGEST_NS => Lookout { next_ns: now_ns + self.again_ns, again_ns: 2 * self.again_ns },
            _ => Lookout::NEVER,
        }
    }
}

impl Watched {
    /// Looks whether the extension of its runtime has been loaded, and probes that.
    pub fn look_for_extension(&mut self, kernel: &mut Kernel, builds: &mut Builds, now_ns: u64) {
        let (Some(runtime), Some(spending)) = (&mut self.runtime, &self.spending) else { return };
        if now_ns < self.lookout.next_ns {
            return;
        }
        let found = match runtime.build().runtime.extension() {
            Some(extension) => {
                image::read_extension(&self.process, extension, builds).map(|loaded| (extension, loaded))
            }
            None => {
                self.lookout = Lookout::NEVER;
                return;
            }
        };
        self.lookout = match &found {
            Ok((_, None)) => self.lookout.later(now_ns),
            _ => Lookout::NEVER,
        };
        let (state, detail) = match found {
            Ok((_, None)) => return,
            Ok((extension, Some(loaded))) => match runtime.add_extension(kernel, spending, &loaded) {
                Ok(()) => {
                    let (state, how) = measured(spending, Tier::Lifecycle);
                    (state, format!("blocks that {} defers, {how}", extension.name))
                }
                Err(e) => (ProbeState::Broken, e.to_string()),
            },
            // It is about to end: the kernel will say so.
            Err(_) if !self.process.is_running() => return,
            Err(refusal) => (refusal.state, refusal.why),
        };
        self.status.set(ROW, state, detail);
    }

    /// Forgets what a process deferred, which has ended or runs another image.
    pub fn forget_deferred(&self, kernel: &mut Kernel, pid: u32) {
        if self.sees_deferred()
            && let Err(e) = kernel.forget_deferred_by(pid)
        {
            log::warn!("{e}");
        }
    }

    /// Forgets what all its processes deferred: they are not watched any more.
    pub fn forget_all_deferred(&self, kernel: &mut Kernel) {
        if self.sees_deferred()
            && let Err(e) = kernel.forget_deferred_of(self.slot)
        {
            log::warn!("{e}");
        }
    }

    /// Whether work that its runtime defers is seen.
    pub fn sees_deferred(&self) -> bool {
        self.runtime.as_ref().or(self.ended_runtime.as_ref()).is_some_and(Runtime::sees_deferred)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_for_ever_less_often_and_then_no_more() {
        let mut lookout = Lookout::SOON;
        let mut times = Vec::new();
        while lookout.next_ns != u64::MAX {
            times.push(lookout.next_ns / AGAIN_NS);
            lookout = lookout.later(lookout.next_ns);
        }
        assert_eq!(times, [0, 1, 3, 7, 15, 31, 63]);
    }
}
