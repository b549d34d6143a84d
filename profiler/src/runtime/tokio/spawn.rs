//! Where tasks are created: every creation writes its vtable's address into a new task, and nothing else does.
//!
//! The task is built on the stack (`Cell::new` in `runtime/task/core.rs`), then the heap is asked for room, then it is
//! copied there. The check of the allocator's answer in between is a conditional branch: the kernel emulates it, it
//! runs once per task, the address is in a register, and the id is already in the copy on the stack.

mod path;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use iced_x86::{Instruction, Mnemonic, OpKind};

use self::path::{Found, Path};
use super::vtable::{Layout, Vtable};
use crate::runtime::IdPlace;
use crate::target::elf::Binary;
use crate::target::site::Site;
use crate::target::site::code::{Bodies, Body, immediate};

/// A site that every creation of certain tasks passes exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Creation {
    /// The site, with the address of the new task.
    pub(super) site: Site,
    /// Index of the only vtable of the tasks that are created there; `None` where there are several.
    pub(super) vtable: Option<usize>,
    /// Where the id of the new task is.
    pub(super) id: IdPlace,
}

/// What was found, and what was not.
#[derive(Debug, Default)]
pub(super) struct Creations {
    /// The sites.
    pub(super) found: Vec<Creation>,
    /// References to vtables whose creation was not understood, and vtables without any that was: tasks that would be
    /// missed.
    pub(super) missed: usize,
    /// Where in the code the tasks of which type are created: several places may share a site.
    pub(super) origins: Vec<Origin>,
    /// The instructions that name a vtable, and the index of that.
    pub(super) loads: HashMap<u64, usize>,
}

/// A place in code that only the creation of one type passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Address of an instruction.
    pub(super) address: u64,
    /// Index of the type's vtable.
    pub(super) vtable: usize,
}

/// Finds the creation of the tasks of all `vtables`, which are sorted by address.
pub(super) fn find(binary: &Binary<'_>, bodies: &mut Bodies<'_, '_>, layout: Layout, vtables: &[Vtable]) -> Creations {
    let mut sites = Sites::default();
    let mut origins = Vec::new();
    let mut loads = HashMap::new();
    let mut missed = 0;
    let mut referenced = HashSet::new();
    for reference in references(binary, vtables) {
        let Some(function) = binary.function_at(reference.address) else { continue };
        let Some(body) = bodies.of(function) else { continue };
        let Some(start) = reference.instruction(&body) else { continue };
        referenced.insert(reference.vtable);
        let load = body.instructions[start].ip();
        loads.insert(load, reference.vtable);
        let found = Some(start)
            .filter(|&start| is_load(&body.instructions[start]))
            .and_then(|start| Path::find(&body, start, layout, &vtables[reference.vtable]));
        let Some(found) = found else {
            missed += 1;
            continue;
        };
        for found in found {
            let address = if found.shared { load } else { found.site.address };
            origins.push(Origin { address, vtable: reference.vtable });
            sites.add(reference.vtable, found);
        }
    }
    missed += vtables.len() - referenced.len() + sites.contested.len();
    Creations { found: sites.known.into_values().map(|(creation, _)| creation).collect(), missed, origins, loads }
}

/// The sites found so far.
#[derive(Default)]
struct Sites {
    /// By address, and whether the task is complete there.
    known: BTreeMap<u64, (Creation, bool)>,
    /// Those that seem to create several types, and cannot tell which: at least one of them is wrong.
    contested: HashSet<u64>,
}

impl Sites {
    fn add(&mut self, vtable: usize, found: Found) {
        let address = found.site.address;
        let creation = Creation { site: found.site, vtable: (!found.shared).then_some(vtable), id: found.id };
        match self.known.entry(address) {
            _ if self.contested.contains(&address) => {}
            Entry::Vacant(place) => drop(place.insert((creation, found.built))),
            Entry::Occupied(place) if place.get().0.vtable == creation.vtable => {}
            Entry::Occupied(mut place) if found.built && place.get().1 => {
                let known = &mut place.get_mut().0;
                known.vtable = None;
                known.id = if known.id == IdPlace::Nowhere { IdPlace::Nowhere } else { IdPlace::Vtable };
            }
            Entry::Occupied(place) => {
                place.remove();
                self.contested.insert(address);
            }
        }
    }
}

/// A place in code that may name a vtable.
struct Reference {
    /// Address of the four bytes that name it.
    address: u64,
    /// What they name, if they are a distance: the vtable, or a word that holds its address.
    to: u64,
    /// Index of the vtable.
    vtable: usize,
}

impl Reference {
    /// The index of the instruction that names the vtable, where those bytes belong to one.
    fn instruction(&self, body: &Body) -> Option<usize> {
        let index = body.instructions.partition_point(|i| i.ip() <= self.address).checked_sub(1)?;
        let instruction = &body.instructions[index];
        let by_distance = instruction.is_ip_rel_memory_operand() && instruction.ip_rel_memory_address() == self.to;
        let by_address = instruction.mnemonic() == Mnemonic::Mov && immediate(instruction) == Some(self.to);
        let ends = self.address.checked_add(4) == Some(instruction.next_ip());
        (ends && (by_distance || by_address)).then_some(index)
    }
}

/// Whether an instruction that names a vtable puts its address somewhere: all else is not understood.
fn is_load(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Lea => true,
        Mnemonic::Mov => instruction.op1_kind() == OpKind::Memory || immediate(instruction).is_some(),
        _ => false,
    }
}

/// All four-byte values in code that are the distance to a vtable, or to a word that holds its address (a global offset
/// table's), or its absolute address.
fn references(binary: &Binary<'_>, vtables: &[Vtable]) -> Vec<Reference> {
    let mut names: HashMap<u64, usize> = vtables.iter().enumerate().map(|(index, v)| (v.address, index)).collect();
    let direct = names.clone();
    for &(place, to) in binary.relocations() {
        if let Some(&index) = direct.get(&to) {
            names.insert(place, index);
        }
    }
    let (Some(&lowest), Some(&highest)) = (names.keys().min(), names.keys().max()) else { return Vec::new() };
    let mut found = Vec::new();
    for (base, code) in binary.code() {
        for (at, bytes) in code.windows(4).enumerate() {
            let value = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let address = base + at as u64;
            let to = (address + 4).wrapping_add_signed(value.into());
            if (lowest..=highest).contains(&to)
                && let Some(&vtable) = names.get(&to)
            {
                found.push(Reference { address, to, vtable });
            } else if !binary.relocatable
                && let Some(&vtable) = direct.get(&(value as u32).into())
            {
                found.push(Reference { address, to: (value as u32).into(), vtable });
            }
        }
    }
    found
}
