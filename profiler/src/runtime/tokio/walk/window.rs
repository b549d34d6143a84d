//! The words around a runtime's list of tasks, where the rest of its handle is. Never what they mean.

use super::owned::Owned;
use super::thread::region_of;
use crate::target::memory::{Batch, Memory, MemoryError, Region};

/// Bytes on both sides of the list.
const AROUND: u64 = 1024;
/// The addresses that a process can have, but for the lowest, which are never mapped.
const ADDRESSES: std::ops::Range<u64> = 1 << 16..1 << 47;

/// Some words, as they were at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Address of the first.
    pub(super) start: u64,
    pub(super) words: Vec<u64>,
}

impl Window {
    /// Reads the words around a list; none where that is not mapped.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub(super) fn read(memory: &dyn Memory, regions: &[Region], owned: &Owned) -> Result<Window, MemoryError> {
        let Some(region) = region_of(regions, owned.place) else { return Ok(Window::default()) };
        let start = region.start.max(owned.place.saturating_sub(AROUND));
        let mut batch = Batch::default();
        batch.add(start, (region.end.min(owned.place + AROUND) - start) as usize);
        batch.read(memory)?;
        Ok(Window { start, words: batch.words(0).collect() })
    }

    /// The address of a word.
    pub(super) fn address(&self, at: usize) -> u64 {
        self.start + at as u64 * 8
    }

    /// The word at an address.
    pub(super) fn word(&self, address: u64) -> Option<u64> {
        self.words.get(usize::try_from(address.checked_sub(self.start)?).ok()? / 8).copied()
    }

    /// The numbers of all words, the nearest to an address first: another runtime's handle may be next to this one's.
    pub(super) fn nearest(&self, address: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.words.len()).collect();
        order.sort_by_key(|&at| self.address(at).abs_diff(address));
        order
    }
}

/// Whether a word may be a pointer: what was mapped since the regions were read is none of theirs.
pub(super) fn is_address(word: u64) -> bool {
    word.is_multiple_of(8) && ADDRESSES.contains(&word)
}
