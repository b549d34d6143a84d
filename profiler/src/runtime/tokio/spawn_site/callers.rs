//! Who calls whom, read from the bytes of the code without decoding them.

use std::collections::HashSet;

use crate::target::elf::Binary;

/// The calls of and jumps to the beginnings of functions, direct or through the global offset table.
pub(super) struct Callers {
    /// (function, address of the opcode), sorted.
    calls: Vec<(u64, u64)>,
}

impl Callers {
    /// Reads all code once.
    pub(super) fn of(binary: &Binary<'_>) -> Callers {
        let mut calls = Vec::new();
        let starts: HashSet<u64, rustc_hash::FxBuildHasher> =
            binary.functions.iter().map(|function| function.start).collect();
        for (base, code) in binary.code() {
            for (at, bytes) in code.windows(6).enumerate() {
                let address = base + at as u64;
                let target = |from: usize| {
                    let distance = i32::from_le_bytes([bytes[from], bytes[from + 1], bytes[from + 2], bytes[from + 3]]);
                    (address + from as u64 + 4).wrapping_add_signed(distance.into())
                };
                let to = match bytes {
                    // call rel32, jmp rel32
                    [0xe8 | 0xe9, ..] => Some(target(1)),
                    // call [rip+disp32], jmp [rip+disp32]
                    [0xff, 0x15 | 0x25, ..] => binary.relocation(target(2)),
                    _ => None,
                };
                if let Some(to) = to.filter(|to| starts.contains(to)) {
                    calls.push((to, address));
                }
            }
        }
        calls.sort_unstable();
        Callers { calls }
    }

    /// Addresses at or within the instructions that call the function at `entry`; some may belong to none.
    pub(super) fn of_function(&self, entry: u64) -> impl Iterator<Item = u64> + '_ {
        let first = self.calls.partition_point(|&(to, _)| to < entry);
        self.calls[first..].iter().take_while(move |&&(to, _)| to == entry).map(|&(_, address)| address)
    }
}

/// Addresses within the code of four-byte values that are the distance to one of `targets`, or its address.
pub(super) fn references(binary: &Binary<'_>, targets: &HashSet<u64>) -> Vec<u64> {
    let (Some(&lowest), Some(&highest)) = (targets.iter().min(), targets.iter().max()) else { return Vec::new() };
    let mut found = Vec::new();
    for (base, code) in binary.code() {
        for (at, bytes) in code.windows(4).enumerate() {
            let value = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let address = base + at as u64;
            let to = (address + 4).wrapping_add_signed(value.into());
            let near = (lowest..=highest).contains(&to) && targets.contains(&to);
            if near || (!binary.relocatable && targets.contains(&(value as u32).into())) {
                found.push(address);
            }
        }
    }
    found
}
