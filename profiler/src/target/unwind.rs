//! Unwinds copied stacks by the tables of an executable (`.eh_frame`). Never what the functions are.

#[cfg(test)]
mod tests;

use std::ops::Range;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Register, RegisterRule, UnwindContext,
    UnwindSection as _, UnwindTableRow, X86_64,
};

use super::elf::{Binary, Segment};

/// Frames of one stack that are unwound.
const MAX_FRAMES: usize = 32;
/// Registers that are followed, by their DWARF numbers.
const REGISTERS: usize = 17;

type Bytes<'data> = EndianSlice<'data, LittleEndian>;

/// Where the tables of a file are. The file itself is passed when they are read.
#[derive(Clone, Debug)]
pub struct Unwinder {
    segments: Vec<Segment>,
    /// The search table: its address, and where it is in the file.
    index: (u64, Range<usize>),
    /// The unwind table, up to the end of its segment.
    table: (u64, Range<usize>),
}

/// The innermost part of a stack, as it was copied.
#[derive(Clone, Copy, Debug)]
pub struct CopiedStack<'a> {
    /// Registers by their DWARF numbers; 0 for those that were not copied.
    pub registers: [u64; REGISTERS],
    /// Bytes from the stack pointer on.
    pub bytes: &'a [u8],
}

impl CopiedStack<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.registers[usize::from(X86_64::RSP.0)])?).ok()?;
        self.bytes.get(at..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))
    }
}

impl Unwinder {
    /// Finds the tables; `None` where the file has none that can be searched.
    pub fn of(binary: &Binary<'_>) -> Option<Unwinder> {
        let index = binary.unwind_index.clone()?;
        let bytes = binary.bytes(index.clone())?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(index.start);
        let parsed = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).ok()?;
        let gimli::Pointer::Direct(table) = parsed.eh_frame_ptr() else { return None };
        parsed.table()?;
        let range = |address: u64, length: usize| {
            let offset = usize::try_from(binary.file_offset(address)?).ok()?;
            Some((address, offset..offset.checked_add(length)?))
        };
        Some(Unwinder {
            segments: binary.segments.clone(),
            index: range(index.start, bytes.len())?,
            table: range(table, binary.bytes_from(table)?.len())?,
        })
    }

    /// The addresses on a stack, in the file's own terms: of the instruction, then those to which the functions return,
    /// innermost first. It ends where the file's code, its tables or the copied bytes do.
    pub fn frames(&self, data: &[u8], load_bias: u64, stack: &CopiedStack<'_>) -> Vec<u64> {
        let mut frames = Vec::new();
        let Some(tables) = Tables::of(self, data) else { return frames };
        let mut context = UnwindContext::new();
        let mut registers = stack.registers.map(Some);
        while frames.len() < MAX_FRAMES {
            let Some(at) = registers[usize::from(X86_64::RA.0)].and_then(|pc| pc.checked_sub(load_bias)) else { break };
            if !self.is_code(at) {
                break;
            }
            frames.push(at);
            // A return address is behind its call, and may be another function's.
            let inside = if frames.len() == 1 { at } else { at.saturating_sub(1) };
            match tables.row(&mut context, inside).and_then(|row| caller(row, &registers, stack)) {
                Some(above) => registers = above,
                None => break,
            }
        }
        frames
    }

    fn is_code(&self, address: u64) -> bool {
        self.segments.iter().any(|s| s.executable && address.checked_sub(s.address).is_some_and(|d| d < s.file_size))
    }
}

/// The tables within the bytes of the file.
struct Tables<'data> {
    bases: BaseAddresses,
    index: gimli::ParsedEhFrameHdr<Bytes<'data>>,
    frames: EhFrame<Bytes<'data>>,
}

impl<'data> Tables<'data> {
    fn of(unwinder: &Unwinder, data: &'data [u8]) -> Option<Tables<'data>> {
        let (index, table) = (&unwinder.index, &unwinder.table);
        let bases = BaseAddresses::default().set_eh_frame_hdr(index.0).set_eh_frame(table.0);
        let parsed = EhFrameHdr::new(data.get(index.1.clone())?, LittleEndian).parse(&bases, 8).ok()?;
        let frames = EhFrame::new(data.get(table.1.clone())?, LittleEndian);
        Some(Tables { bases, index: parsed, frames })
    }

    /// How to find the caller of the code at `address`.
    fn row<'c>(&self, context: &'c mut UnwindContext<usize>, address: u64) -> Option<&'c UnwindTableRow<usize>> {
        let table = self.index.table()?;
        let entry = table.fde_for_address(&self.frames, &self.bases, address, EhFrame::cie_from_offset).ok()?;
        entry.unwind_info_for_address(&self.frames, &self.bases, context, address).ok()
    }
}

/// The registers of the caller; `None` where they cannot be told. A caller's stack is further up than its callee's:
/// else a hostile stack could be walked in circles.
fn caller(
    row: &UnwindTableRow<usize>,
    registers: &[Option<u64>; REGISTERS],
    stack: &CopiedStack<'_>,
) -> Option<[Option<u64>; REGISTERS]> {
    let of = |register: Register| *registers.get(usize::from(register.0))?;
    let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else { return None };
    let frame = of(*register)?.checked_add_signed(*offset)?;
    if frame <= of(X86_64::RSP)? {
        return None;
    }
    let mut above = *registers;
    for &(register, ref rule) in row.registers() {
        let value = match rule {
            RegisterRule::Offset(offset) => frame.checked_add_signed(*offset).and_then(|at| stack.word(at)),
            RegisterRule::SameValue => of(register),
            RegisterRule::Register(other) => of(*other),
            _ => None,
        };
        if let Some(place) = above.get_mut(usize::from(register.0)) {
            *place = value;
        }
    }
    // Without an address to return to, there is no caller.
    above[usize::from(X86_64::RA.0)] = above[usize::from(X86_64::RA.0)].filter(|_| {
        row.registers().any(|&(register, ref rule)| register == X86_64::RA && matches!(rule, RegisterRule::Offset(_)))
    });
    above[usize::from(X86_64::RSP.0)] = Some(frame);
    Some(above)
}
