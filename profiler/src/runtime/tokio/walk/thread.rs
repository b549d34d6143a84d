//! Which words threads keep in thread-local storage. Never what they mean.

use rustc_hash::FxHashSet;

use super::Effort;
use crate::target::elf::ThreadLocal;
use crate::target::memory::{Batch, Memory, MemoryError, Region};

/// Bytes at the end of a region in which a thread control block is looked for: glibc puts it below the top of each
/// thread's stack (allocate_stack, nptl/allocatestack.c), and the first thread's into a small region of the loader's.
const SEARCHED: u64 = 64 * 1024;
/// The same where a process has many regions: glibc's `struct pthread` has 2,304 bytes.
const SEARCHED_OF_MANY: u64 = 8 * 1024;
/// Regions from which on there are many.
const MANY: usize = 256;
/// Thread-local bytes that are looked at: those nearest to the thread pointer.
const MOST_LOCAL: u64 = 64 * 1024;
/// Different words that are kept, over all threads.
const MOST_WORDS: usize = 1 << 15;
/// Bytes that are read together.
const BATCH: usize = 256 * 1024;

/// The region that holds an address.
pub(super) fn region_of(regions: &[Region], address: u64) -> Option<&Region> {
    let index = regions.partition_point(|region| region.start <= address).checked_sub(1)?;
    Some(&regions[index]).filter(|region| address < region.end)
}

/// Pointers to the process's data in the executable's thread-local storage of all threads, each once.
pub(super) fn pointers(
    memory: &dyn Memory,
    regions: &[Region],
    local: ThreadLocal,
    effort: Effort,
) -> Result<Vec<u64>, MemoryError> {
    let length = local.size.next_multiple_of(local.align).min(MOST_LOCAL);
    let mut found = Vec::new();
    let mut seen = FxHashSet::default();
    let mut batch = Batch::default();
    for pointers in thread_pointers(memory, regions, effort)?.chunks(BATCH / MOST_LOCAL as usize) {
        batch.clear();
        for &pointer in pointers {
            batch.add(pointer.saturating_sub(length), length as usize);
        }
        batch.read(memory)?;
        for word in (0..batch.len()).flat_map(|span| batch.words(span)) {
            if found.len() >= MOST_WORDS || effort.is_over() {
                return Ok(found);
            }
            if word % 8 == 0 && region_of(regions, word).is_some() && seen.insert(word) {
                found.push(word);
            }
        }
    }
    Ok(found)
}

/// The thread pointers of all threads: the addresses of blocks that begin with their own address, and have it again
/// two words later (`tcbhead_t`, sysdeps/x86_64/nptl/tls.h of glibc).
fn thread_pointers(memory: &dyn Memory, regions: &[Region], effort: Effort) -> Result<Vec<u64>, MemoryError> {
    let searched = if regions.len() < MANY { SEARCHED } else { SEARCHED_OF_MANY };
    let mut found = Vec::new();
    let mut batch = Batch::default();
    for regions in regions.chunks(BATCH / SEARCHED as usize) {
        batch.clear();
        let starts: Vec<u64> = regions.iter().map(|r| r.start.max(r.end.saturating_sub(searched)) / 16 * 16).collect();
        for (start, region) in starts.iter().zip(regions) {
            batch.add(*start, region.end.saturating_sub(*start) as usize);
        }
        batch.read(memory)?;
        for (span, start) in starts.iter().enumerate() {
            let words: Vec<u64> = batch.words(span).collect();
            for at in (0..words.len().saturating_sub(2)).step_by(2) {
                let address = start + at as u64 * 8;
                if words[at] == address && words[at + 2] == address {
                    found.push(address);
                }
            }
        }
        if effort.is_over() {
            break;
        }
    }
    Ok(found)
}
