//! Tokio: hooks found by the shape of data and code.

use profiler_common::event::TaskRecord;

use super::{DetectError, Instance, Plan, Runtime, Untranslated};
use crate::event::TaskEvent;
use crate::target::elf::Binary;

/// The adapter.
pub struct Tokio;

impl Runtime for Tokio {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn detect(&self, _binary: &Binary<'_>) -> Result<Option<Plan>, DetectError> {
        Ok(None)
    }
}

/// Makes a neutral event of a raw record.
pub(super) fn translate(_instance: &Instance<'_>, _record: &TaskRecord) -> Result<TaskEvent, Untranslated> {
    Err(Untranslated::ForeignKind)
}
