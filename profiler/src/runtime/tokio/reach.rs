//! What the code of a task refers to: functions, panic locations, thread-local words. Each function is read once.

use std::collections::{HashMap, HashSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::target::elf::Binary;
use crate::target::site::code;

/// Bytes of code that are read in all: a hostile file must not cost seconds.
const MAX_BYTES: u64 = 32 << 20;
/// Bytes of one function that are read.
const MAX_FUNCTION: u64 = 256 << 10;
/// Instructions between the load and the store of a word that is exchanged.
const EXCHANGE_DISTANCE: usize = 4;

/// What one function refers to.
#[derive(Debug, Default)]
pub(super) struct References {
    /// Functions that it calls or ends in.
    pub(super) calls: Vec<u64>,
    /// Addresses of data that it takes.
    pub(super) data: Vec<u64>,
    /// Thread-local words (distances from the thread pointer) that it exchanges: loads, and at once stores anew.
    pub(super) exchanges: Vec<i64>,
}

/// The functions of a binary, read when they are first asked for.
pub(super) struct Reach<'b, 'data> {
    binary: &'b Binary<'data>,
    known: HashMap<u64, References>,
    read: u64,
}

impl<'b, 'data> Reach<'b, 'data> {
    /// Nothing read yet.
    pub(super) fn new(binary: &'b Binary<'data>) -> Self {
        Reach { binary, known: HashMap::new(), read: 0 }
    }

    /// Calls `visit` with each function that `entries` lead to, nearest first, with its distance in calls, until it
    /// has been satisfied (returned true) at some distance, or `depth` calls were followed.
    pub(super) fn walk(
        &mut self,
        entries: impl IntoIterator<Item = u64>,
        depth: usize,
        mut visit: impl FnMut(u64, &References) -> bool,
    ) {
        let mut seen = HashSet::new();
        let mut level: Vec<u64> = entries.into_iter().filter(|&entry| seen.insert(entry)).collect();
        for _ in 0..=depth {
            let mut next = Vec::new();
            let mut satisfied = false;
            for function in level {
                let references = self.references(function);
                satisfied |= visit(function, references);
                next.extend(references.calls.iter().copied().filter(|&call| seen.insert(call)));
            }
            if satisfied {
                return;
            }
            level = next;
        }
    }

    /// What the function at `entry` refers to.
    pub(super) fn references(&mut self, entry: u64) -> &References {
        let binary = self.binary;
        let read = &mut self.read;
        self.known.entry(entry).or_insert_with(|| {
            let Some(function) = binary.function_at(entry) else { return References::default() };
            let length = (function.end - entry).min(MAX_FUNCTION);
            if *read + length > MAX_BYTES {
                return References::default();
            }
            *read += length;
            binary.bytes(entry..entry + length).map_or_else(References::default, |bytes| scan(binary, bytes, entry))
        })
    }
}

/// Reads one function.
fn scan(binary: &Binary<'_>, bytes: &[u8], entry: u64) -> References {
    let end = entry + bytes.len() as u64;
    let mut found = References::default();
    let mut tls = ThreadWords::default();
    let mut decoder = Decoder::with_ip(64, bytes, entry, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        match instruction.flow_control() {
            FlowControl::Call => found.calls.extend(code::call(&instruction)),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                // A branch out of the function is a tail call.
                found.calls.extend(code::branch(&instruction).filter(|to| !(entry..end).contains(to)));
            }
            FlowControl::IndirectCall | FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
                let to = binary.word(instruction.ip_rel_memory_address());
                found.calls.extend(to.filter(|&to| binary.is_code(to)));
            }
            _ => {}
        }
        if instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() {
            found.data.push(instruction.ip_rel_memory_address());
        } else if !binary.relocatable && instruction.mnemonic() == Mnemonic::Mov {
            found.data.extend(code::immediate(&instruction));
        }
        if let Some(word) = tls.follow(&instruction) {
            found.exchanges.push(word);
        }
    }
    found.calls.sort_unstable();
    found.calls.dedup();
    found.exchanges.sort_unstable();
    found.exchanges.dedup();
    found
}

/// What a register is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// A constant.
    Constant(i64),
    /// The thread pointer plus a constant.
    Thread(i64),
}

/// Follows accesses to thread-local words through the registers that address them.
#[derive(Default)]
struct ThreadWords {
    registers: [Option<Known>; 16],
    /// The last word loaded, the register it went to, and the instructions since.
    loaded: Option<(i64, Register, usize)>,
}

impl ThreadWords {
    /// Follows one instruction; the word that it completes the exchange of.
    fn follow(&mut self, instruction: &Instruction) -> Option<i64> {
        if let Some((_, _, age)) = &mut self.loaded {
            *age += 1;
        }
        let op0 = instruction.op0_register();
        let op1 = instruction.op1_register();
        let mut exchanged = None;
        let mut result = None;
        match (instruction.mnemonic(), instruction.op0_kind(), instruction.op1_kind()) {
            (Mnemonic::Mov, OpKind::Register, OpKind::Memory) if op0.is_gpr64() => match self.word(instruction) {
                // `mov r, fs:0`: the thread pointer itself.
                Some(0) => result = Some(Known::Thread(0)),
                Some(word) => self.loaded = Some((word, op0, 0)),
                None => {}
            },
            (Mnemonic::Mov, OpKind::Memory, OpKind::Register) if op1.is_gpr64() => {
                exchanged = self
                    .loaded
                    .filter(|&(word, to, age)| {
                        age <= EXCHANGE_DISTANCE && to != op1 && self.word(instruction) == Some(word)
                    })
                    .map(|(word, ..)| word);
            }
            (Mnemonic::Mov, OpKind::Register, OpKind::Register) => result = self.of(op1),
            (Mnemonic::Mov, OpKind::Register, _) => result = constant(instruction),
            (Mnemonic::Lea, ..) if !instruction.is_ip_rel_memory_operand() => {
                let base = self.of(instruction.memory_base());
                let index = match (instruction.memory_index(), instruction.memory_index_scale()) {
                    (Register::None, _) => Some(Known::Constant(0)),
                    (register, 1) => self.of(register),
                    _ => None,
                };
                let displacement = Some(Known::Constant(instruction.memory_displacement64() as i64));
                result = sum(sum(base, index), displacement);
            }
            (Mnemonic::Add, OpKind::Register, OpKind::Register) => result = sum(self.of(op0), self.of(op1)),
            (Mnemonic::Add, OpKind::Register, _) => result = sum(self.of(op0), constant(instruction)),
            (Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push, ..) => return None,
            _ => {}
        }
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            for register in [0, 1, 2, 6, 7, 8, 9, 10, 11] {
                self.registers[register] = None;
            }
            self.loaded = None;
        } else if instruction.op0_kind() == OpKind::Register && op0.is_gpr() {
            self.registers[op0.full_register().number()] = result.filter(|_| op0.is_gpr64() || op0.is_gpr32());
        }
        exchanged
    }

    /// The thread-local word that an eight-byte memory operand is.
    fn word(&self, instruction: &Instruction) -> Option<i64> {
        let displacement = instruction.memory_displacement64() as i64;
        let base = match instruction.memory_base() {
            Register::None => Some(Known::Constant(0)),
            Register::RIP => None,
            register => self.of(register),
        };
        let index = match (instruction.memory_index(), instruction.memory_index_scale()) {
            (Register::None, _) => Some(Known::Constant(0)),
            (register, 1) => self.of(register),
            _ => None,
        };
        match (instruction.segment_prefix() == Register::FS, sum(base, index)?) {
            (true, Known::Constant(at)) | (false, Known::Thread(at)) => at.checked_add(displacement),
            _ => None,
        }
    }

    fn of(&self, register: Register) -> Option<Known> {
        register.is_gpr64().then(|| self.registers[register.number()]).flatten()
    }
}

fn sum(a: Option<Known>, b: Option<Known>) -> Option<Known> {
    match (a?, b?) {
        (Known::Constant(a), Known::Constant(b)) => a.checked_add(b).map(Known::Constant),
        (Known::Thread(a), Known::Constant(b)) | (Known::Constant(a), Known::Thread(b)) => {
            a.checked_add(b).map(Known::Thread)
        }
        _ => None,
    }
}

fn constant(instruction: &Instruction) -> Option<Known> {
    code::immediate(instruction).map(|value| Known::Constant(value as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchanges(bytes: &[u8]) -> Vec<i64> {
        let mut words = ThreadWords::default();
        Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).iter().filter_map(|i| words.follow(&i)).collect()
    }

    /// Check that we see an exchange through a fixed displacement, as in fully linked builds.
    #[test]
    fn a_fixed_displacement_is_followed() {
        // mov r14, fs:[-0xc0]; mov fs:[-0xc0], r12
        let code = [
            0x64, 0x4c, 0x8b, 0x34, 0x25, 0x40, 0xff, 0xff, 0xff, //
            0x64, 0x4c, 0x89, 0x24, 0x25, 0x40, 0xff, 0xff, 0xff,
        ];
        assert_eq!(exchanges(&code), [-0xc0]);
    }

    /// Check that we see an exchange through a register that holds the displacement.
    #[test]
    fn a_displacement_in_a_register_is_followed() {
        // mov r15, -0x120; mov rax, fs:[r15+0x30]; mov fs:[r15+0x30], rcx
        let code = [
            0x49, 0xc7, 0xc7, 0xe0, 0xfe, 0xff, 0xff, //
            0x64, 0x49, 0x8b, 0x47, 0x30, //
            0x64, 0x49, 0x89, 0x4f, 0x30,
        ];
        assert_eq!(exchanges(&code), [-0xf0]);
    }

    /// Check that we see an exchange through a pointer made of the thread pointer.
    #[test]
    fn a_pointer_from_the_thread_pointer_is_followed() {
        // mov rax, fs:0; lea rbx, [rax-0x40]; mov rcx, [rbx+8]; mov [rbx+8], rdx
        let code = [
            0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, //
            0x48, 0x8d, 0x58, 0xc0, //
            0x48, 0x8b, 0x4b, 0x08, //
            0x48, 0x89, 0x53, 0x08,
        ];
        assert_eq!(exchanges(&code), [-0x38]);
    }

    /// Check that a counter that is incremented is no exchange.
    #[test]
    fn an_increment_is_no_exchange() {
        // mov rax, fs:[-8]; inc rax; mov fs:[-8], rax
        let code = [
            0x64, 0x48, 0x8b, 0x04, 0x25, 0xf8, 0xff, 0xff, 0xff, //
            0x48, 0xff, 0xc0, //
            0x64, 0x48, 0x89, 0x04, 0x25, 0xf8, 0xff, 0xff, 0xff,
        ];
        assert_eq!(exchanges(&code), Vec::<i64>::new());
    }
}
