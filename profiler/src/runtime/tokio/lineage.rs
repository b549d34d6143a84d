//! Where a thread keeps the id of the task that it polls: `current_task_id` of `runtime/context.rs`.

use std::collections::HashMap;

use super::reach::Reach;
use super::version::Version;
use super::vtable::{Layout, Vtable};
use crate::target::elf::{Binary, SymbolKind};

/// Calls between a task's vtable and the exchange of the id (`TaskIdGuard::enter`, usually inlined).
const DEPTH: usize = 4;

/// The id's distance from the thread pointer, and how it was found.
///
/// # Errors
/// Why it cannot be told for certain.
pub(super) fn current_task(
    binary: &Binary<'_>,
    reach: &mut Reach<'_, '_>,
    version: Option<Version>,
    layout: Layout,
    vtables: &[Vtable],
) -> Result<(i64, &'static str), String> {
    if layout.id_in_vtable.is_none() {
        return Err("this version keeps no id of the current task".to_owned());
    }
    let local = binary.thread_local.ok_or("the binary has no thread-local storage")?;
    let by_symbol = by_symbol(binary, version);
    let by_shape = by_shape(binary, reach, layout, vtables)
        .filter(|&word| word < 0 && word % 8 == 0 && word.unsigned_abs() <= local.size + local.align);
    match (by_shape, by_symbol) {
        (Some(shape), Some(symbol)) if shape == symbol => Ok((shape, "by shape and by symbol")),
        (Some(shape), None) => Ok((shape, "by shape")),
        (None, Some(symbol)) => Ok((symbol, "by symbol")),
        (Some(shape), Some(symbol)) => {
            Err(format!("the id of the current task is at {shape:#x} by shape, at {symbol:#x} by symbol"))
        }
        (None, None) => Err("the id of the current task was not found".to_owned()),
    }
}

/// The word that most polls exchange, and no other as many.
fn by_shape(binary: &Binary<'_>, reach: &mut Reach<'_, '_>, layout: Layout, vtables: &[Vtable]) -> Option<i64> {
    let mut votes: HashMap<i64, usize> = HashMap::new();
    let mut voters = 0;
    for vtable in vtables {
        let slots = [0, layout.shutdown_slot].into_iter().filter_map(|slot| vtable.function(binary, slot));
        let mut words: Vec<i64> = Vec::new();
        reach.walk(slots, DEPTH, |_, references| {
            words.extend(&references.exchanges);
            !references.exchanges.is_empty()
        });
        words.sort_unstable();
        words.dedup();
        voters += usize::from(!words.is_empty());
        words.into_iter().for_each(|word| *votes.entry(word).or_default() += 1);
    }
    let (&word, &count) = votes.iter().max_by_key(|&(_, count)| count)?;
    let rival = votes.iter().filter(|&(&other, _)| other != word).map(|(_, &count)| count).max().unwrap_or(0);
    // Every poll and every cancellation enters the task's id; other words are exchanged by what some tasks do.
    (count * 10 >= voters * 9 && count > rival).then_some(word)
}

/// Known places of the id in `CONTEXT`, by version (measured).
fn by_symbol(binary: &Binary<'_>, version: Option<Version>) -> Option<i64> {
    let offset = match version?.minor {
        28..=38 => 0x28,
        40..=54 => 0x30,
        _ => return None,
    };
    let context = binary.symbols.iter().find(|symbol| {
        symbol.kind == SymbolKind::ThreadLocal && symbol.name.contains("5tokio7runtime7context7CONTEXT")
    })?;
    binary.thread_local?.from_thread_pointer(context.address.checked_add(offset)?)
}
