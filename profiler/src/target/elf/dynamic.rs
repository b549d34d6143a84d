//! What the dynamic linker knows by name: exported places of any kind, and the words through which imported ones are reached.

use object::LittleEndian as Le;
use object::elf;
use object::read::elf::{FileHeader as _, ProgramHeader as _, Sym as _};

use super::{Binary, Header};

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

/// Addresses of the words that the dynamic linker fills with the address of what has this name.
pub(super) fn slots(binary: &Binary<'_>, name: &str) -> Option<Vec<u64>> {
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
