//! Decoded functions. Never what their code means.

use std::collections::HashMap;
use std::rc::Rc;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

use crate::target::elf::{Binary, Function};

/// Longer functions are cut here: hostile files may claim any size.
const MAX_BYTES: usize = 1 << 20;

/// A decoded function.
pub struct Body {
    /// Its instructions, in the order of their addresses.
    pub instructions: Vec<Instruction>,
    /// Direct branches within it, as (target, source), sorted.
    branches: Vec<(u64, u64)>,
}

impl Body {
    /// Decodes `function`; `None` where it has no bytes in the file.
    pub fn decode(binary: &Binary<'_>, function: &Function) -> Option<Body> {
        let bytes = binary.bytes_from(function.start)?;
        let length = usize::try_from(function.end.checked_sub(function.start)?).ok()?.min(bytes.len()).min(MAX_BYTES);
        Some(Body::of(&bytes[..length], function.start))
    }

    /// Decodes `bytes` at `address`.
    pub fn of(bytes: &[u8], address: u64) -> Body {
        let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        let mut instructions = Vec::with_capacity(bytes.len() / 4);
        let mut branches = Vec::new();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if let Some(target) = branch(&instruction) {
                branches.push((target, instruction.ip()));
            }
            instructions.push(instruction);
        }
        branches.sort_unstable();
        Body { instructions, branches }
    }

    /// The index of the instruction that begins at `address`.
    pub fn index_of(&self, address: u64) -> Option<usize> {
        self.instructions.binary_search_by_key(&address, Instruction::ip).ok()
    }

    /// Whether a branch of this function leads into (`from`, `to`].
    pub fn is_joined(&self, from: u64, to: u64) -> bool {
        let first = self.branches.partition_point(|&(target, _)| target <= from);
        self.branches.get(first).is_some_and(|&(target, _)| target <= to)
    }

    /// The addresses of the direct branches to `target`.
    pub fn sources(&self, target: u64) -> impl Iterator<Item = u64> + '_ {
        let first = self.branches.partition_point(|&(to, _)| to < target);
        self.branches[first..].iter().take_while(move |&&(to, _)| to == target).map(|&(_, source)| source)
    }
}

/// The decoded functions of a binary, each decoded when it is first asked for.
pub struct Bodies<'b, 'data> {
    binary: &'b Binary<'data>,
    known: HashMap<u64, Option<Rc<Body>>>,
    bytes: u64,
}

impl<'b, 'data> Bodies<'b, 'data> {
    /// Nothing decoded yet.
    pub fn new(binary: &'b Binary<'data>) -> Self {
        Bodies { binary, known: HashMap::new(), bytes: 0 }
    }

    /// The code of `function`; `None` where it has no bytes in the file.
    pub fn of(&mut self, function: &Function) -> Option<Rc<Body>> {
        let known = self.known.entry(function.start).or_insert_with(|| {
            self.bytes += (function.end - function.start).min(MAX_BYTES as u64);
            Body::decode(self.binary, function).map(Rc::new)
        });
        known.clone()
    }

    /// How many bytes of code were decoded.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The target of a direct jump, conditional or not; calls are none.
pub fn branch(instruction: &Instruction) -> Option<u64> {
    matches!(instruction.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
        .then(|| near_target(instruction))
        .flatten()
}

/// The target of a direct call.
pub fn call(instruction: &Instruction) -> Option<u64> {
    (instruction.flow_control() == FlowControl::Call).then(|| near_target(instruction)).flatten()
}

/// The immediate second operand.
pub fn immediate(instruction: &Instruction) -> Option<u64> {
    instruction.try_immediate(1).ok()
}

fn near_target(instruction: &Instruction) -> Option<u64> {
    (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch64())
}
