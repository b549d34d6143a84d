//! Libraries of others that processes of a runtime load, and that have work of their own to be seen.

use super::{IsLibrary, ProbeSpec};
use crate::target::elf::Binary;

/// Such a library.
pub struct Extension {
    /// Its name, for people.
    pub name: &'static str,
    /// What tells a mapped file to be it.
    pub is: IsLibrary,
    /// What is to be probed in one build of it.
    ///
    /// # Errors
    /// Why nothing is, for people.
    pub plan: fn(&Binary<'_>) -> Result<ExtensionPlan, String>,
}

/// What to probe in one build of an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtensionPlan {
    /// Probes to attach.
    pub probes: Vec<ProbeSpec>,
    /// Virtual address (in the file's own terms) of the function that runs what is deferred.
    pub deferred_function: u64,
}
