//! What the dynamic linker knows by name: exported places of any kind, and the words through which imported ones are reached.

use object::LittleEndian as Le;
use object::elf;
use object::read::elf::{FileHeader as _, ProgramHeader as _, Sym as _};

use super::{Binary, Header};

/// `jmp *` through a word that is relative to it, and what may stand before.
const JUMP: [u8; 2] = [0xff, 0x25];
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// Relocations of one file that are looked at.
const MOST: usize = 1 << 16;

/// The address that the dynamic symbol table has for a name, whatever it names: code in assembly has no kind.
pub(super) fn address(binary: &Binary<'_>, name: &str) -> Option<u64> {
    let header = Header::parse(binary.data).ok()?;
    let table = header.sections(Le, binary.data).ok()?.symbols(Le, binary.data, elf::SHT_DYNSYM).ok()?;
    let is_it = |symbol: &&elf::Sym64<Le>| {
        symbol.st_shndx(Le) != elf::SHN_UNDEF && symbol.name(Le, table.strings()).is_ok_and(|n| n == name.as_bytes())
    };
    table.iter().find(is_it).map(|symbol| symbol.st_value(Le))
}

/// The entries of the procedure linkage table through which what has this name is called.
pub(super) fn entries(binary: &Binary<'_>, name: &str) -> Vec<u64> {
    let slots = slots(binary, name).unwrap_or_default();
    let mut found = Vec::new();
    if slots.is_empty() {
        return found;
    }
    for (address, code) in binary.code() {
        for (at, window) in code.windows(6).enumerate() {
            let [first, second, a, b, c, d] = *window else { continue };
            let jump = address + at as u64;
            let slot = (jump + 6).wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])));
            if [first, second] == JUMP && slots.contains(&slot) {
                let marked = at >= ENDBR64.len() && code[at - ENDBR64.len()..at] == ENDBR64;
                found.push(if marked { jump - ENDBR64.len() as u64 } else { jump });
            }
        }
    }
    found
}

/// Addresses of the words that the dynamic linker fills with the address of what has this name.
fn slots(binary: &Binary<'_>, name: &str) -> Option<Vec<u64>> {
    let header = Header::parse(binary.data).ok()?;
    let programs = header.program_headers(Le, binary.data).ok()?;
    let dynamic = programs.iter().find_map(|p| p.dynamic(Le, binary.data).ok().flatten())?;
    let value = |tag| dynamic.iter().find(|entry| entry.d_tag.get(Le) == tag).map(|entry| entry.d_val.get(Le));
    let table = header.sections(Le, binary.data).ok()?.symbols(Le, binary.data, elf::SHT_DYNSYM).ok()?;
    let strings = table.strings();
    let number = table.iter().position(|symbol| symbol.name(Le, strings).is_ok_and(|n| n == name.as_bytes()))?;
    let mut found = Vec::new();
    for (address, size) in [(elf::DT_JMPREL, elf::DT_PLTRELSZ), (elf::DT_RELA, elf::DT_RELASZ)] {
        let Some((start, size)) = value(address).zip(value(size)) else { continue };
        let Some(bytes) = start.checked_add(size).and_then(|end| binary.bytes(start..end)) else { continue };
        for entry in bytes.as_chunks::<24>().0.iter().take(MOST) {
            let [place, info, _] = super::relocation::words(entry);
            let kind = elf::RelocationType(info as u32);
            if (info >> 32) as usize == number && matches!(kind, elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_GLOB_DAT) {
                found.push(place);
            }
        }
    }
    Some(found)
}
