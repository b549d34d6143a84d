//! Where functions begin and end: unwind tables, which survive stripping, and symbols.

use gimli::{BaseAddresses, EhFrame, UnwindSection as _};
use object::LittleEndian as Le;
use object::read::elf::{FileHeader as _, SectionHeader as _};

use super::{Binary, Header, SymbolKind};

/// The extent of a function. Padding behind it may be included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// First address.
    pub start: u64,
    /// The address behind its last byte.
    pub end: u64,
}

/// DW_EH_PE_udata4.
const COUNT_ENCODING: u8 = 0x03;
/// DW_EH_PE_datarel | DW_EH_PE_sdata4.
const TABLE_ENCODING: u8 = 0x3b;

/// All functions, sorted by start, without overlaps. Each begins before the next; where only starts are known, it
/// ends there too.
pub(super) fn read(binary: &Binary<'_>, header: &Header) -> Vec<Function> {
    let mut found = search_table(binary).unwrap_or_else(|| walk(binary, header));
    found.extend(
        binary
            .symbols
            .iter()
            .filter(|s| s.kind == SymbolKind::Function && s.size > 0)
            .map(|s| Function { start: s.address, end: s.address.saturating_add(s.size) }),
    );
    found.retain(|f| f.start < f.end && binary.is_code(f.start));
    // Of two at the same place, the longer first: it is kept.
    found.sort_unstable_by_key(|f| (f.start, u64::MAX - f.end));
    found.dedup_by_key(|f| f.start);
    for index in 0..found.len() {
        let next = found.get(index + 1).map(|f| f.start);
        let segment = binary.segments.iter().find(|s| s.executable && s.address <= found[index].start);
        let limit = next.into_iter().chain(segment.map(|_| segment_end(binary, found[index].start))).min();
        if let Some(limit) = limit {
            found[index].end = found[index].end.min(limit);
        }
    }
    found
}

fn segment_end(binary: &Binary<'_>, address: u64) -> u64 {
    let inside = |s: &&super::Segment| address.checked_sub(s.address).is_some_and(|d| d < s.file_size);
    binary.segments.iter().find(inside).map_or(u64::MAX, |s| s.address + s.file_size)
}

/// Reads the binary search table of `.eh_frame_hdr`, which the linker writes with one encoding.
fn search_table(binary: &Binary<'_>) -> Option<Vec<Function>> {
    let index = binary.unwind_index.clone()?;
    let base = index.start;
    let bytes = binary.bytes(index)?;
    let [1, _, COUNT_ENCODING, TABLE_ENCODING] = *bytes.first_chunk::<4>()? else { return None };
    let count = u32::from_le_bytes(*bytes.get(8..)?.first_chunk::<4>()?) as usize;
    let (entries, _) = bytes.get(12..)?.as_chunks::<8>();
    let entries = entries.get(..count)?;
    let relative = |word: &[u8]| {
        let offset = i32::from_le_bytes(*word.first_chunk::<4>()?);
        base.checked_add_signed(offset.into())
    };
    let mut functions = Vec::with_capacity(entries.len());
    for entry in entries {
        let start = relative(entry)?;
        let end = relative(&entry[4..]).and_then(|fde| extent(binary, fde, start)).unwrap_or(u64::MAX);
        functions.push(Function { start, end });
    }
    Some(functions)
}

/// The end of the function at `start` from its frame description entry, where it has the usual encoding
/// (pcrel | sdata4), which shows in that its first field then is `start`.
fn extent(binary: &Binary<'_>, entry: u64, start: u64) -> Option<u64> {
    let bytes = binary.bytes_from(entry)?.first_chunk::<16>()?;
    let field = |at: usize| bytes.get(at..).and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_le_bytes(*b));
    let begin = entry.checked_add(8)?.checked_add_signed((field(8)? as i32).into())?;
    (begin == start).then(|| start.checked_add(field(12)?.into())).flatten()
}

/// Walks `.eh_frame` itself, for files without a search table.
fn walk(binary: &Binary<'_>, header: &Header) -> Vec<Function> {
    let mut functions = Vec::new();
    let Ok(sections) = header.sections(Le, binary.data) else { return functions };
    let Some((_, section)) = sections.section_by_name(Le, b".eh_frame") else { return functions };
    let Ok(data) = section.data(Le, binary.data) else { return functions };
    let frames = EhFrame::new(data, gimli::LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(section.sh_addr.get(Le));
    let mut entries = frames.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        let gimli::CieOrFde::Fde(partial) = entry else { continue };
        let Ok(entry) = partial.parse(EhFrame::cie_from_offset) else { continue };
        functions.push(Function { start: entry.initial_address(), end: entry.end_address() });
    }
    functions
}
