//! Relative relocations, as the dynamic section lists them: RELA and RELR.

use object::LittleEndian as Le;
use object::elf;
use object::read::elf::ProgramHeader as _;

use super::{Binary, ElfError};

/// All relative relocations of `binary`: (where, addend), sorted and without duplicates.
///
/// # Errors
/// The tables are outside the file, or list more places than the file has words.
pub(super) fn read(binary: &Binary<'_>, programs: &[elf::ProgramHeader64<Le>]) -> Result<Vec<(u64, u64)>, ElfError> {
    let malformed = |reason| ElfError::Malformed { what: "the relocations", reason };
    let Some(dynamic) = programs.iter().find_map(|p| p.dynamic(Le, binary.data).ok().flatten()) else {
        return Ok(Vec::new());
    };
    let value = |tag| dynamic.iter().find(|d| d.d_tag.get(Le) == tag).map(|d| d.d_val.get(Le));
    // A place takes eight bytes of a writable segment, so there cannot be more of them than that.
    let limit = binary.segments.iter().filter(|s| s.writable).map(|s| s.file_size / 8).sum::<u64>() as usize;
    let table = |address: u64, size: u64| {
        let end = address.checked_add(size)?;
        binary.bytes(address..end)
    };
    let mut found = Vec::new();
    if let (Some(address), Some(size)) = (value(elf::DT_RELA), value(elf::DT_RELASZ)) {
        let bytes = table(address, size).ok_or(malformed("outside the file"))?;
        for entry in bytes.as_chunks::<24>().0 {
            let [place, info, addend] = words(entry);
            if elf::RelocationType(info as u32) == elf::R_X86_64_RELATIVE {
                found.push((place, addend));
            }
        }
    }
    if let (Some(address), Some(size)) = (value(elf::DT_RELR), value(elf::DT_RELRSZ)) {
        let bytes = table(address, size).ok_or(malformed("outside the file"))?;
        packed(binary, bytes, limit, &mut found).ok_or(malformed("more than the file has words"))?;
    }
    if found.len() > limit {
        return Err(malformed("more than the file has words"));
    }
    found.sort_unstable_by_key(|&(place, _)| place);
    found.dedup_by_key(|&mut (place, _)| place);
    Ok(found)
}

/// RELR: an even word is a place; an odd one is a bitmap of the 63 words that follow. The addend is in place.
fn packed(binary: &Binary<'_>, table: &[u8], limit: usize, found: &mut Vec<(u64, u64)>) -> Option<()> {
    let mut push = |place: u64| {
        let addend = binary.bytes_from(place).and_then(|bytes| bytes.first_chunk::<8>());
        if let Some(addend) = addend {
            found.push((place, u64::from_le_bytes(*addend)));
        }
        (found.len() <= limit).then_some(())
    };
    let mut next = 0u64;
    for word in table.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*word);
        if word & 1 == 0 {
            push(word)?;
            next = word.checked_add(8)?;
            continue;
        }
        for bit in 0..63u64 {
            if word >> (bit + 1) & 1 != 0 {
                push(next.checked_add(bit * 8)?)?;
            }
        }
        next = next.checked_add(63 * 8)?;
    }
    Some(())
}

pub(super) fn words(entry: &[u8; 24]) -> [u64; 3] {
    let (words, _) = entry.as_chunks::<8>();
    [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]), u64::from_le_bytes(words[2])]
}
