//! The shared libraries that a file asks for by name.

use object::LittleEndian as Le;
use object::elf;
use object::read::elf::ProgramHeader as _;

use super::Binary;

/// More of them, or a longer name, are no program's.
const MOST: usize = 1024;
const LONGEST: usize = 256;

/// Names of the libraries, in the order in which they are loaded. What lies outside the file is left out.
pub(super) fn read<'data>(binary: &Binary<'data>, programs: &[elf::ProgramHeader64<Le>]) -> Vec<&'data str> {
    let Some(dynamic) = programs.iter().find_map(|p| p.dynamic(Le, binary.data).ok().flatten()) else {
        return Vec::new();
    };
    let strings = dynamic.iter().find(|entry| entry.d_tag.get(Le) == elf::DT_STRTAB);
    let Some(strings) = strings.map(|entry| entry.d_val.get(Le)) else { return Vec::new() };
    let name = |offset: u64| {
        let bytes = binary.bytes_from(strings.checked_add(offset)?)?;
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        let end = bytes.iter().position(|&byte| byte == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    };
    let wanted = dynamic.iter().filter(|entry| entry.d_tag.get(Le) == elf::DT_NEEDED).take(MOST);
    wanted.filter_map(|entry| name(entry.d_val.get(Le))).collect()
}
