//! Task vtables: which types of task there are. Found by their shape in data that survives stripping.

use super::version::Version;
use crate::target::elf::{Binary, SymbolKind};

/// Where Tokio keeps what, by version (`runtime/task/core.rs`, `runtime/task/raw.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Offset of the vtable pointer in the task header.
    pub(super) vtable_in_header: u32,
    /// Offset of the id's offset in the vtable; `None` where tasks have no id that the vtable tells.
    pub(super) id_in_vtable: Option<u32>,
    /// The slot of the function that cancels a task at shutdown.
    pub(super) shutdown_slot: usize,
}

/// Tokio 1.23 and later.
pub(super) const WITH_OFFSETS: Layout = Layout { vtable_in_header: 16, id_in_vtable: Some(72), shutdown_slot: 6 };

/// Tokio 1.21 and 1.22.
const WITH_TRAILER: Layout = Layout { vtable_in_header: 16, id_in_vtable: None, shutdown_slot: 7 };

/// Tokio 1.10 to 1.20.
const FUNCTIONS_ONLY: Layout = Layout { vtable_in_header: 32, id_in_vtable: None, shutdown_slot: 7 };

/// The oldest minor version that is understood.
pub(super) const OLDEST: u32 = 18;

/// A task vtable: one per type of future and scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vtable {
    /// Virtual address.
    pub(super) address: u64,
    /// Offset of the task's trailer from its header, where the vtable tells it.
    pub(super) trailer: Option<u64>,
    /// Offset of the scheduler handle from the header, where the vtable tells it.
    pub(super) scheduler: Option<u64>,
    /// Offset of the id from the header, where the vtable tells it.
    pub(super) id: Option<u64>,
}

impl Vtable {
    /// The function in a slot.
    pub(super) fn function(&self, binary: &Binary<'_>, slot: usize) -> Option<u64> {
        binary.word(self.address + slot as u64 * 8)
    }

    /// The function that polls the task.
    pub(super) fn poll(&self, binary: &Binary<'_>) -> Option<u64> {
        self.function(binary, 0)
    }
}

/// Functions in a vtable of 1.23 and later.
const FUNCTIONS: u64 = 7;
/// More vtables than any program has: a hostile file must not fill memory.
const MAX_VTABLES: usize = 1 << 16;

/// The vtables of Tokio 1.23 and later: seven code pointers, then the offsets of trailer, scheduler and id.
pub(super) fn by_shape(binary: &Binary<'_>) -> Vec<Vtable> {
    let places = code_pointers(binary);
    let mut found = Vec::new();
    let mut run = 0;
    for (index, &place) in places.iter().enumerate() {
        let follows = index > 0 && places[index - 1].checked_add(8) == Some(place);
        run = if follows { run + 1 } else { 1 };
        let ends = places.get(index + 1).is_none_or(|&next| place.checked_add(8) != Some(next));
        if run >= FUNCTIONS && ends && found.len() < MAX_VTABLES {
            found.extend(shaped(binary, place - (FUNCTIONS - 1) * 8));
        }
    }
    found
}

fn shaped(binary: &Binary<'_>, address: u64) -> Option<Vtable> {
    let offset = |slot: u64| {
        let place = address + slot * 8;
        // A relocated word is a pointer.
        binary.relocation(place).is_none().then(|| binary.word(place)).flatten().filter(|value| value % 8 == 0)
    };
    let (trailer, scheduler, id) = (offset(7)?, offset(8)?, offset(9)?);
    // An alignment of the future of up to 512 bytes moves the scheduler away from the header.
    let plausible = (0x20..=0x200).contains(&scheduler) && scheduler <= id && id <= scheduler + 64;
    (plausible && id < trailer && trailer < 1 << 24).then_some(Vtable {
        address,
        trailer: Some(trailer),
        scheduler: Some(scheduler),
        id: Some(id),
    })
}

/// The vtables of Tokio 1.18 to 1.22: eight code pointers, the first of which a symbol calls a task's poll.
pub(super) fn by_symbol(binary: &Binary<'_>, version: Version) -> Option<(Layout, Vec<Vtable>)> {
    let layout = match version.minor {
        OLDEST..=20 => FUNCTIONS_ONLY,
        21..=22 => WITH_TRAILER,
        _ => return None,
    };
    let polls: std::collections::HashSet<u64> = binary
        .symbols
        .iter()
        .filter(|s| s.kind == SymbolKind::Function && s.name.contains("5tokio7runtime4task3raw4poll"))
        .map(|s| s.address)
        .collect();
    let places = code_pointers(binary);
    let found = places
        .windows(8)
        .filter(|run| run[7] - run[0] == 56 && binary.word(run[0]).is_some_and(|poll| polls.contains(&poll)))
        .take(MAX_VTABLES)
        .map(|run| Vtable { address: run[0], trailer: None, scheduler: None, id: None })
        .collect();
    Some((layout, found))
}

/// The places of all words in data that point to code, sorted.
pub(super) fn code_pointers(binary: &Binary<'_>) -> Vec<u64> {
    if !binary.relocations().is_empty() {
        return binary.relocations().iter().filter(|&&(_, to)| binary.is_code(to)).map(|&(place, _)| place).collect();
    }
    // Without relocations (linked to a fixed address) the words are in place.
    let mut places = Vec::new();
    for segment in binary.segments.iter().filter(|s| !s.executable) {
        let Some(bytes) = binary.bytes(segment.address..segment.address + segment.file_size) else { continue };
        let skip = (segment.address.wrapping_neg() % 8) as usize;
        for (index, word) in bytes.get(skip..).unwrap_or_default().as_chunks::<8>().0.iter().enumerate() {
            if binary.is_code(u64::from_le_bytes(*word)) {
                places.push(segment.address + skip as u64 + index as u64 * 8);
            }
        }
    }
    places
}
