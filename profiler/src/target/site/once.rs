//! An instruction that each call of a function executes exactly once, however its loops and branches go. Never what the
//! function does.

use iced_x86::{FlowControl, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register};

use super::code::{Body, branch};
use super::{Site, argument, is_emulated};

/// Longer functions are not looked at: the search is quadratic.
const MAX_INSTRUCTIONS: usize = 400;

/// The registers that the ABI has a call preserve.
const PRESERVED: [Register; 5] = [Register::RBX, Register::R12, Register::R13, Register::R14, Register::R15];

/// The first emulated instruction that every call from `entry` which returns executes exactly once, with a register that
/// still holds what `register` did on entry.
pub fn site(body: &Body, entry: u64, register: Register) -> Option<Site> {
    let first = body.index_of(entry)?;
    if body.instructions.len() > MAX_INSTRUCTIONS {
        return None;
    }
    let held = holders(body, first, register);
    (first..body.instructions.len()).find_map(|at| {
        let instruction = &body.instructions[at];
        let holder = held[at].and_then(Holders::any)?;
        let once = is_emulated(instruction) && !returns(body, first, Some(at)) && !is_repeated(body, at);
        once.then_some(Site { address: instruction.ip(), argument: argument(holder)?, displacement: 0, emulated: true })
    })
}

/// Where an instruction leads.
struct Next {
    /// Indices of instructions.
    to: [Option<usize>; 2],
    /// Out of the function, other than by a trap.
    leaves: bool,
}

fn next(body: &Body, at: usize) -> Next {
    let instruction = &body.instructions[at];
    let following = Some(at + 1).filter(|&next| next < body.instructions.len());
    let target = branch(instruction).and_then(|target| body.index_of(target));
    match instruction.flow_control() {
        FlowControl::ConditionalBranch => Next { to: [following, target], leaves: target.is_none() },
        FlowControl::UnconditionalBranch => Next { to: [target, None], leaves: target.is_none() },
        FlowControl::Return | FlowControl::IndirectBranch => Next { to: [None, None], leaves: true },
        FlowControl::Interrupt | FlowControl::Exception => Next { to: [None, None], leaves: false },
        _ => Next { to: [following, None], leaves: false },
    }
}

/// Visits what can be reached from `from` without executing `without`; false stops.
fn reach(
    body: &Body,
    from: impl IntoIterator<Item = usize>,
    without: Option<usize>,
    mut see: impl FnMut(usize) -> bool,
) {
    let mut seen = vec![false; body.instructions.len()];
    let mut open: Vec<usize> = from.into_iter().collect();
    while let Some(at) = open.pop() {
        if Some(at) == without || std::mem::replace(&mut seen[at], true) {
            continue;
        }
        if !see(at) {
            return;
        }
        open.extend(next(body, at).to.into_iter().flatten());
    }
}

/// Whether the function can be left without executing `without`.
fn returns(body: &Body, first: usize, without: Option<usize>) -> bool {
    let mut leaves = false;
    reach(body, [first], without, |at| {
        leaves |= next(body, at).leaves;
        !leaves
    });
    leaves
}

/// Whether an instruction can be executed again.
fn is_repeated(body: &Body, at: usize) -> bool {
    let mut again = false;
    reach(body, next(body, at).to.into_iter().flatten(), None, |seen| {
        again |= seen == at;
        !again
    });
    again
}

/// A set of registers that hold one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holders(u16);

impl Holders {
    fn bit(register: Register) -> u16 {
        if register.is_gpr64() { 1 << register.number() } else { 0 }
    }

    fn has(self, register: Register) -> bool {
        self.0 & Holders::bit(register) != 0
    }

    fn any(self) -> Option<Register> {
        use Register::{R8, R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RSI};
        [RDI, RBX, R12, R13, R14, R15, RSI, RDX, RCX, RAX, RBP, R8, R9, R10, R11].into_iter().find(|&r| self.has(r))
    }
}

/// Before each instruction: the registers that surely hold the value. `None` where it is never reached.
fn holders(body: &Body, first: usize, register: Register) -> Vec<Option<Holders>> {
    let mut held: Vec<Option<Holders>> = vec![None; body.instructions.len()];
    held[first] = Some(Holders(Holders::bit(register)));
    let mut open = vec![first];
    let mut factory = InstructionInfoFactory::new();
    while let Some(at) = open.pop() {
        let Some(before) = held[at] else { continue };
        let after = step(body, at, before, &mut factory);
        for to in next(body, at).to.into_iter().flatten() {
            let joined = held[to].map_or(after, |known| Holders(known.0 & after.0));
            if held[to] != Some(joined) {
                held[to] = Some(joined);
                open.push(to);
            }
        }
    }
    held
}

fn step(body: &Body, at: usize, before: Holders, factory: &mut InstructionInfoFactory) -> Holders {
    let instruction = &body.instructions[at];
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        let preserved = PRESERVED.into_iter().fold(0, |bits, register| bits | Holders::bit(register));
        return Holders(before.0 & preserved);
    }
    let mut after = before.0;
    let info = factory.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
    for used in info.used_registers() {
        let read_only =
            matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None);
        if !read_only {
            after &= !Holders::bit(used.register().full_register());
        }
    }
    let copies = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register().is_gpr64()
        && before.has(instruction.op1_register());
    if copies {
        after |= Holders::bit(instruction.op0_register());
    }
    Holders(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1000;

    fn found(bytes: &[u8]) -> Option<u64> {
        site(&Body::of(bytes, BASE), BASE, Register::RDI).map(|site| site.address - BASE)
    }

    /// Check that we pass the instructions of a loop and take the branch behind it.
    #[test]
    fn the_branch_behind_a_loop_is_taken() {
        // top: mov rax,[rdi]; lock cmpxchg [rdi],rcx; jne top; test sil,sil; je +1; nop; ret
        let code =
            [0x48, 0x8b, 0x07, 0xf0, 0x48, 0x0f, 0xb1, 0x0f, 0x75, 0xf6, 0x40, 0x84, 0xf6, 0x74, 0x01, 0x90, 0xc3];
        assert_eq!(found(&code), Some(13));
    }

    /// Check that we refuse what one of two branches avoids, and what has lost the argument.
    #[test]
    fn what_can_be_avoided_is_refused() {
        // test eax,eax (single-stepped); jz +1 is executed always
        assert_eq!(found(&[0x85, 0xc0, 0x74, 0x01, 0x90, 0xc3]), Some(2));
        // xor edi,edi; je +0; ret
        assert_eq!(found(&[0x31, 0xff, 0x74, 0x00, 0xc3]), None);
        // jrcxz (single-stepped) over a nop: the nop may be avoided
        assert_eq!(found(&[0xe3, 0x01, 0x90, 0xc3]), None);
    }
}
