//! Where tasks are woken: the functions of the vtable that their wakers share.

use iced_x86::{FlowControl, Mnemonic, Register};

use super::vtable;
use crate::target::elf::{Binary, SymbolKind};
use crate::target::site::code::{Body, immediate};
use crate::target::site::{self, Site, once};

/// Instructions of the function that clones a waker.
const CLONE: usize = 14;
/// What cloning adds to a task's state word: one reference (`REF_ONE` of runtime/task/state.rs, since 1.9).
const REFERENCE: u64 = 0x40;

/// The sites of wakes.
#[derive(Clone, Debug, Default)]
pub(super) struct Wakes {
    /// Wakes that use the waker up.
    pub(super) by_value: Vec<Site>,
    /// Wakes that keep it.
    pub(super) by_ref: Vec<Site>,
    /// How they were found.
    pub(super) how: &'static str,
}

/// The sites of all wakes.
///
/// # Errors
/// Why they cannot be told.
pub(super) fn find(binary: &Binary<'_>) -> Result<Wakes, String> {
    let places = &vtable::code_pointers(binary)[..];
    let mut tables: Vec<u64> = places
        .windows(4)
        .filter(|four| four[3].checked_sub(four[0]) == Some(24))
        .map(|four| four[0])
        .filter(|&table| clones(binary, table, true))
        .collect();
    let mut how = "by shape";
    if tables.is_empty() {
        // Where the count of references is not kept inline (1.20), the names must tell.
        tables = by_symbol(binary, places);
        how = "by symbol";
    }
    if tables.is_empty() {
        return Err("the vtable of wakers was not found".to_owned());
    }
    let functions = |slot: u64| {
        let mut functions: Vec<u64> = tables.iter().filter_map(|table| binary.word(table + slot * 8)).collect();
        functions.sort_unstable();
        functions.dedup();
        functions
    };
    let sites = |slot| -> Result<Vec<Site>, String> {
        functions(slot)
            .into_iter()
            .map(|function| site(binary, function).ok_or_else(|| format!("no cheap place to probe in {function:#x}")))
            .collect()
    };
    Ok(Wakes { by_value: sites(1)?, by_ref: sites(2)?, how })
}

fn site(binary: &Binary<'_>, function: u64) -> Option<Site> {
    let function = binary.function_at(function)?;
    let body = Body::decode(binary, function)?;
    site::in_body(&body, function.start, Register::RDI).or_else(|| once::site(&body, function.start, Register::RDI))
}

/// Whether the first of four functions returns a waker with this very vtable and (`counted`) adds a reference to the task.
fn clones(binary: &Binary<'_>, table: u64, counted: bool) -> bool {
    let Some(function) = binary.word(table).and_then(|clone| binary.function_at(clone)) else { return false };
    let Some(body) = Body::decode(binary, function) else { return false };
    let (mut itself, mut reference) = (false, false);
    for instruction in body.instructions.iter().take(CLONE) {
        if instruction.is_ip_rel_memory_operand() {
            let to = instruction.ip_rel_memory_address();
            itself |= match instruction.mnemonic() {
                Mnemonic::Lea => to == table,
                Mnemonic::Mov => binary.word(to) == Some(table),
                _ => false,
            };
        }
        reference |= immediate(instruction) == Some(REFERENCE);
        if instruction.flow_control() == FlowControl::Return {
            break;
        }
    }
    itself && (reference || !counted)
}

/// The vtables whose second function a symbol calls a waker's.
fn by_symbol(binary: &Binary<'_>, places: &[u64]) -> Vec<u64> {
    let wakers: std::collections::HashSet<u64> = binary
        .symbols
        .iter()
        .filter(|s| s.kind == SymbolKind::Function && s.name.contains("5tokio7runtime4task5waker"))
        .map(|s| s.address)
        .collect();
    if wakers.is_empty() {
        return Vec::new();
    }
    let of_wakers = |four: &&[u64]| {
        four[3].checked_sub(four[0]) == Some(24)
            && binary.word(four[0]).is_some_and(|clone| wakers.contains(&clone))
            && clones(binary, four[0], false)
    };
    places.windows(4).filter(of_wakers).map(|four| four[0]).collect()
}
