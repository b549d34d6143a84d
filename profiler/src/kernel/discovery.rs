//! Processes of all programs that the kernel half has seen begin. Never which of them are wanted.

use super::KernelError;
use super::load::Kernel;
use super::maps::failed;

/// Entries of maps that have one where processes are not to be found, or few where there are few targets: of a node's.
pub(super) const SIZES: &[(&str, u32)] = &[(YOUNG, 16384), ("LOOPS", 1024), ("TYPES", 16384)];

/// Processes by id, and when they began.
const YOUNG: &str = "YOUNG";

impl Kernel {
    /// Takes out the processes that have lived since `before_ns`, as they are now: those that replaced their image later are
    /// left in. Nobody is told twice.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn take_grown(&mut self, before_ns: u64) -> Result<Vec<u32>, KernelError> {
        let mut young = self.hash::<u32, u64>(YOUNG)?;
        let mut grown = Vec::new();
        // An entry that is removed meanwhile may let the walk begin again, and an entry be seen twice.
        for entry in young.iter() {
            match entry {
                Ok((pid, began_ns)) if began_ns <= before_ns => grown.push(pid),
                Ok(_) => {}
                Err(e) => {
                    log::debug!("{}", failed(YOUNG)(e));
                    break;
                }
            }
        }
        grown.sort_unstable();
        grown.dedup();
        for pid in &grown {
            let _ = young.remove(pid);
        }
        Ok(grown)
    }
}
