//! Panic locations in the application's own sources: what a stripped binary still says of where its code is from.

use crate::runtime::{SpawnSite, short_path};
use crate::target::elf::Binary;

/// A place in a source file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Location {
    /// Path as the compiler was given it.
    pub(super) file: String,
    /// Line, from 1.
    pub(super) line: u32,
    /// Column, from 1.
    pub(super) column: u32,
}

/// Longer paths are no source files.
const MAX_PATH: u64 = 1024;

/// What the paths of foreign sources contain: the toolchain's, the registry's and those checked out from version control.
const FOREIGN: [&str; 6] = ["/rustc/", "/registry/src/", "/.cargo/", "/rustlib/", "/git/checkouts/", "/tokio-1."];

impl Location {
    /// The `core::panic::Location` at `address` (pointer and length of the path, line, column), if there is one.
    pub(super) fn read(binary: &Binary<'_>, address: u64) -> Option<Location> {
        if binary.relocatable && binary.relocation(address).is_none() {
            return None;
        }
        let length = binary.word(address.checked_add(8)?)?;
        if !(4..=MAX_PATH).contains(&length) {
            return None;
        }
        let place = binary.word(address.checked_add(16)?)?;
        let (line, column) = (place as u32, (place >> 32) as u32);
        if line == 0 || column == 0 || line > 1 << 24 || column > 1 << 16 {
            return None;
        }
        let path = binary.word(address)?;
        let file = std::str::from_utf8(binary.bytes(path..path.checked_add(length)?)?).ok()?;
        (file.ends_with(".rs") && !file.contains(char::is_control)).then(|| Location {
            file: file.to_owned(),
            line,
            column,
        })
    }

    /// Whether the source is the application's, as far as its path tells.
    pub(super) fn is_own(&self) -> bool {
        !FOREIGN.iter().any(|part| self.file.contains(part)) && !self.file.starts_with("library/")
    }

    /// `src/main.rs:120`: the last parts of the path, from the directory above `src`.
    pub(super) fn short(&self) -> String {
        format!("{}:{}", short_path(&self.file), self.line)
    }
}

impl From<Location> for SpawnSite {
    fn from(location: Location) -> SpawnSite {
        SpawnSite::Line { file: location.file, line: location.line, column: Some(location.column) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(file: &str) -> Location {
        Location { file: file.to_owned(), line: 7, column: 1 }
    }

    /// Check that we know the sources that are not the application's.
    #[test]
    fn foreign_sources_are_told() {
        assert!(location("src/main.rs").is_own());
        assert!(!location("/rustc/0123/library/core/src/option.rs").is_own());
        assert!(!location("/home/user/.cargo/registry/src/index-0123/mio-1.0.0/src/poll.rs").is_own());
    }
}
