//! The ELF file of a target: segments, relocations, functions, symbols. Never a runtime's shapes.
//!
//! Every number in the file is the word of a stranger: all reads are checked, and no table is larger than the file allows.

mod dynamic;
mod functions;
mod needed;
mod relocation;
#[cfg(test)]
mod tests;

use std::ops::Range;

use object::LittleEndian as Le;
use object::elf;
use object::read::elf::{FileHeader as _, ProgramHeader as _, Sym as _};

pub use self::functions::Function;

/// The header type of the only supported class of files.
type Header = elf::FileHeader64<Le>;

/// Why a file cannot be analysed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF file at all.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file, but for a machine that is not supported.
    #[error("unsupported ELF file: {0} (only 64-bit little-endian x86-64 is)")]
    Unsupported(&'static str),
    /// The file contradicts itself or is cut short.
    #[error("failed to read {what}: {reason}")]
    Malformed {
        /// Which part of the file.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// `call` and `jmp` with a distance of four bytes.
const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;

/// A loadable segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address.
    pub address: u64,
    /// Bytes in memory.
    pub size: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Whether it holds code.
    pub executable: bool,
    /// Whether it is writable at least while it is relocated.
    pub writable: bool,
}

/// What a symbol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// Code.
    Function,
    /// Data.
    Object,
    /// Thread-local data: its address is an offset into the thread-local image.
    ThreadLocal,
}

/// A defined symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol<'data> {
    /// Virtual address, or offset for [`SymbolKind::ThreadLocal`].
    pub address: u64,
    /// Size in bytes; 0 where unknown.
    pub size: u64,
    /// Mangled name.
    pub name: &'data str,
    /// What it names.
    pub kind: SymbolKind,
}

/// The thread-local segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadLocal {
    /// Bytes in memory.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
}

impl ThreadLocal {
    /// The distance from the thread pointer to byte `offset` of the executable's thread-local image (x86-64 ABI,
    /// variant II: the image ends at the thread pointer).
    pub fn from_thread_pointer(&self, offset: u64) -> Option<i64> {
        let size = i64::try_from(self.size.checked_next_multiple_of(self.align)?).ok()?;
        i64::try_from(offset).ok()?.checked_sub(size)
    }
}

/// The virtual address at which what is at `offset` of a file with these segments is loaded; `None` where nothing is.
/// A memory map begins at a page's start, which may be somewhat before its segment's.
pub fn address_of(segments: &[Segment], offset: u64) -> Option<u64> {
    const PAGE: u64 = 4096;
    let covers = |s: &&Segment| s.offset / PAGE * PAGE <= offset && offset < s.offset.saturating_add(s.file_size);
    let segment = segments.iter().find(covers)?;
    Some(segment.address.wrapping_add(offset).wrapping_sub(segment.offset))
}

/// A parsed executable or shared object.
pub struct Binary<'data> {
    /// The whole file.
    pub data: &'data [u8],
    /// Loadable segments, in the order of the file.
    pub segments: Vec<Segment>,
    /// Whether the image may be loaded anywhere (PIE or shared object).
    pub relocatable: bool,
    /// The thread-local segment.
    pub thread_local: Option<ThreadLocal>,
    /// Whether it is linked when it is started.
    pub interpreter: bool,
    /// Addresses of the table by which unwind information is searched (`.eh_frame_hdr`).
    pub unwind_index: Option<Range<u64>>,
    /// The GNU build id.
    pub build_id: Option<&'data [u8]>,
    /// Symbols sorted by address; those of the dynamic table where the file is stripped.
    pub symbols: Vec<Symbol<'data>>,
    /// Functions, sorted by start, without overlaps.
    pub functions: Vec<Function>,
    /// Names of the shared libraries that it asks for.
    pub needed: Vec<&'data str>,
    /// Relative relocations: (where, addend), sorted.
    relocations: Vec<(u64, u64)>,
}

impl<'data> Binary<'data> {
    /// Parses a file.
    ///
    /// # Errors
    /// Not a 64-bit little-endian x86-64 ELF executable, or its headers do not fit the file.
    pub fn parse(data: &'data [u8]) -> Result<Binary<'data>, ElfError> {
        let header = file_header(data)?;
        let programs = header
            .program_headers(Le, data)
            .map_err(|_| ElfError::Malformed { what: "program headers", reason: "outside the file" })?;
        let mut binary = Binary {
            data,
            segments: segments(data, programs)?,
            relocatable: header.e_type.get(Le) == elf::ET_DYN,
            thread_local: thread_local(programs)?,
            interpreter: programs.iter().any(|program| program.p_type.get(Le) == elf::PT_INTERP),
            unwind_index: unwind_index(programs),
            build_id: None,
            symbols: Vec::new(),
            functions: Vec::new(),
            needed: Vec::new(),
            relocations: Vec::new(),
        };
        binary.build_id = programs.iter().find_map(|program| {
            let mut notes = program.notes(Le, data).ok()??;
            std::iter::from_fn(|| notes.next().ok()?).find_map(|note| {
                (note.name() == elf::ELF_NOTE_GNU && note.n_type(Le) == elf::NT_GNU_BUILD_ID).then(|| note.desc())
            })
        });
        binary.symbols = symbols(header, data)?;
        binary.needed = needed::read(&binary, programs);
        binary.relocations = relocation::read(&binary, programs)?;
        binary.functions = functions::read(&binary, header);
        Ok(binary)
    }

    /// The offset in the file of a virtual address.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|s| address.checked_sub(s.address).is_some_and(|d| d < s.file_size))?;
        Some(address - segment.address + segment.offset)
    }

    /// Whether `address` is in an executable segment.
    pub fn is_code(&self, address: u64) -> bool {
        self.segments.iter().any(|s| s.executable && address.checked_sub(s.address).is_some_and(|d| d < s.file_size))
    }

    /// The executable segments: address and bytes.
    pub fn code(&self) -> impl Iterator<Item = (u64, &'data [u8])> + '_ {
        self.segments.iter().filter(|s| s.executable).filter_map(|s| Some((s.address, self.file_bytes(s)?)))
    }

    /// Addresses of the relative calls of these functions. What only looks like one, within another instruction, may be among them.
    pub fn relative_calls(&self, targets: &[u64]) -> Vec<u64> {
        self.relative(&[CALL], targets)
    }

    /// The same, with jumps to them.
    pub fn relative_branches(&self, targets: &[u64]) -> Vec<u64> {
        self.relative(&[CALL, JUMP], targets)
    }

    fn relative(&self, opcodes: &[u8], targets: &[u64]) -> Vec<u64> {
        let mut found = Vec::new();
        for (address, code) in self.code() {
            for (at, &[opcode, a, b, c, d]) in code.array_windows().enumerate() {
                let from = address + at as u64;
                let to = (from + 5).wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])));
                if opcodes.contains(&opcode) && targets.contains(&to) {
                    found.push(from);
                }
            }
        }
        found
    }

    /// The bytes from `address` to the end of the file's part of its segment.
    pub fn bytes_from(&self, address: u64) -> Option<&'data [u8]> {
        let segment = self.segments.iter().find(|s| address.checked_sub(s.address).is_some_and(|d| d < s.file_size))?;
        self.file_bytes(segment)?.get(usize::try_from(address - segment.address).ok()?..)
    }

    /// The bytes of a range of addresses, where all of it is in the file.
    pub fn bytes(&self, range: Range<u64>) -> Option<&'data [u8]> {
        let length = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        self.bytes_from(range.start)?.get(..length)
    }

    /// The word that a process finds at `address` before it runs: a relocation's addend, else the file's content.
    /// Addresses are in the file's own terms (no load bias).
    pub fn word(&self, address: u64) -> Option<u64> {
        if let Some(addend) = self.relocation(address) {
            return Some(addend);
        }
        self.bytes_from(address)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))
    }

    /// The addend of the relative relocation at `address`.
    pub fn relocation(&self, address: u64) -> Option<u64> {
        let index = self.relocations.binary_search_by_key(&address, |&(place, _)| place).ok()?;
        Some(self.relocations[index].1)
    }

    /// The relative relocations: (where, addend), sorted by where.
    pub fn relocations(&self) -> &[(u64, u64)] {
        &self.relocations
    }

    /// The function that contains `address`.
    pub fn function_at(&self, address: u64) -> Option<&Function> {
        let index = self.functions.partition_point(|f| f.start <= address).checked_sub(1)?;
        Some(&self.functions[index]).filter(|f| address < f.end)
    }

    /// The address of what is exported under a name, whatever it is.
    pub fn exported(&self, name: &str) -> Option<u64> {
        dynamic::address(self, name)
    }

    /// Addresses at which calls of what has this name arrive: the entries of the procedure linkage table that lead to it.
    pub fn entries_of_import(&self, name: &str) -> Vec<u64> {
        dynamic::entries(self, name)
    }

    /// The symbols at exactly `address`, thread-local ones excepted.
    pub fn symbols_at(&self, address: u64) -> impl Iterator<Item = &Symbol<'data>> {
        let first = self.symbols.partition_point(|s| s.address < address);
        self.symbols[first..]
            .iter()
            .take_while(move |s| s.address == address)
            .filter(|s| s.kind != SymbolKind::ThreadLocal)
    }

    fn file_bytes(&self, segment: &Segment) -> Option<&'data [u8]> {
        let start = usize::try_from(segment.offset).ok()?;
        self.data.get(start..start.checked_add(usize::try_from(segment.file_size).ok()?)?)
    }
}

fn file_header(data: &[u8]) -> Result<&Header, ElfError> {
    let ident = data.first_chunk::<16>().filter(|ident| ident.starts_with(&elf::ELFMAG)).ok_or(ElfError::NotElf)?;
    if ident[4] != elf::ELFCLASS64.0 {
        return Err(ElfError::Unsupported("not 64-bit"));
    }
    if ident[5] != elf::ELFDATA2LSB.0 {
        return Err(ElfError::Unsupported("not little-endian"));
    }
    let header =
        Header::parse(data).map_err(|_| ElfError::Malformed { what: "the ELF header", reason: "cut short" })?;
    if header.e_machine.get(Le) != elf::EM_X86_64 {
        return Err(ElfError::Unsupported("another machine"));
    }
    if !matches!(header.e_type.get(Le), elf::ET_EXEC | elf::ET_DYN) {
        return Err(ElfError::Unsupported("neither an executable nor a shared object"));
    }
    Ok(header)
}

fn segments(data: &[u8], programs: &[elf::ProgramHeader64<Le>]) -> Result<Vec<Segment>, ElfError> {
    let malformed = |reason| ElfError::Malformed { what: "a loadable segment", reason };
    let mut segments: Vec<Segment> = Vec::new();
    for program in programs.iter().filter(|p| p.p_type.get(Le) == elf::PT_LOAD) {
        let segment = Segment {
            address: program.p_vaddr.get(Le),
            size: program.p_memsz.get(Le),
            offset: program.p_offset.get(Le),
            file_size: program.p_filesz.get(Le),
            executable: program.p_flags.get(Le).0 & elf::PF_X.0 != 0,
            writable: program.p_flags.get(Le).0 & elf::PF_W.0 != 0,
        };
        let file_end = segment.offset.checked_add(segment.file_size);
        if file_end.is_none_or(|end| end > data.len() as u64) {
            return Err(malformed("outside the file"));
        }
        // The upper half of the address space is the kernel's.
        if segment.address.checked_add(segment.size).is_none_or(|end| end > 1 << 62) {
            return Err(malformed("outside the address space"));
        }
        if segment.size < segment.file_size {
            return Err(malformed("smaller in memory than in the file"));
        }
        // The loader requires ascending order; overlaps would also multiply the work of every scan.
        if segments.last().is_some_and(|last| last.address + last.size > segment.address) {
            return Err(malformed("not in ascending order"));
        }
        segments.push(segment);
        // Every address lookup walks them.
        if segments.len() > MAX_SEGMENTS {
            return Err(malformed("too many"));
        }
    }
    if segments.is_empty() {
        return Err(malformed("there is none"));
    }
    if segments.iter().map(|s| s.file_size).sum::<u64>() > (data.len() as u64).saturating_mul(2) {
        return Err(malformed("segments share their bytes"));
    }
    Ok(segments)
}

fn unwind_index(programs: &[elf::ProgramHeader64<Le>]) -> Option<Range<u64>> {
    let program = programs.iter().find(|p| p.p_type.get(Le) == elf::PT_GNU_EH_FRAME)?;
    let start = program.p_vaddr.get(Le);
    Some(start..start.checked_add(program.p_memsz.get(Le))?)
}

fn thread_local(programs: &[elf::ProgramHeader64<Le>]) -> Result<Option<ThreadLocal>, ElfError> {
    let Some(program) = programs.iter().find(|p| p.p_type.get(Le) == elf::PT_TLS) else {
        return Ok(None);
    };
    let found = ThreadLocal { size: program.p_memsz.get(Le), align: program.p_align.get(Le).max(1) };
    if !found.align.is_power_of_two() || found.align > 1 << 20 || found.size > 1 << 32 {
        return Err(ElfError::Malformed { what: "the thread-local segment", reason: "absurd size or alignment" });
    }
    Ok(Some(found))
}

fn symbols<'data>(header: &Header, data: &'data [u8]) -> Result<Vec<Symbol<'data>>, ElfError> {
    let malformed = |_| ElfError::Malformed { what: "the symbol table", reason: "outside the file" };
    // Without readable section headers the file is as good as stripped.
    let Ok(sections) = header.sections(Le, data) else { return Ok(Vec::new()) };
    let mut table = sections.symbols(Le, data, elf::SHT_SYMTAB).map_err(malformed)?;
    if table.is_empty() {
        table = sections.symbols(Le, data, elf::SHT_DYNSYM).map_err(malformed)?;
    }
    let strings = table.strings();
    let mut symbols = Vec::new();
    for symbol in table.iter() {
        let kind = match symbol.st_type() {
            elf::STT_FUNC => SymbolKind::Function,
            elf::STT_OBJECT => SymbolKind::Object,
            elf::STT_TLS => SymbolKind::ThreadLocal,
            _ => continue,
        };
        if symbol.st_shndx(Le) == elf::SHN_UNDEF {
            continue;
        }
        let Some(name) = symbol.name(Le, strings).ok().and_then(|name| std::str::from_utf8(name).ok()) else {
            continue;
        };
        // A hostile table may let every symbol name the same megabyte.
        if name.is_empty() || name.len() > MAX_NAME {
            continue;
        }
        symbols.push(Symbol { address: symbol.st_value(Le), size: symbol.st_size(Le), name, kind });
    }
    symbols.sort_by_key(|symbol| symbol.address);
    Ok(symbols)
}

/// Linkers write four to six loadable segments.
const MAX_SEGMENTS: usize = 64;

/// The longest symbol name that is looked at. v0 names of deeply nested futures reach some ten kilobytes.
const MAX_NAME: usize = 64 * 1024;
