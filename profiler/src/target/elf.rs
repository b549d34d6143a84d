//! The ELF file of a target: segments, sections, relocations, symbols. Never a runtime'"'"'s shapes.

/// A parsed executable or shared object.
pub struct Binary<'data> {
    /// The whole file.
    pub data: &'data [u8],
}
