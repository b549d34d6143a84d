//! The guest's first file system: an archive in memory, in the format that the kernel unpacks (cpio "newc", see
//! Documentation/driver-api/early-userspace/buffer-format.rst). Never what is in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process::output;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
/// Heads and contents are padded to this.
const ALIGN: usize = 4;

/// An archive that grows.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds an empty directory, and those that it is in.
    pub fn directory(&mut self, path: &str) {
        let path = Path::new(path.trim_start_matches('/'));
        let missing: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        for path in missing.into_iter().rev() {
            if self.known.insert(path.to_owned()) {
                self.entry(path, DIRECTORY, &[]);
            }
        }
    }

    /// Adds a file, and the directories that it is in.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory);
        }
        let path = PathBuf::from(path.trim_start_matches('/'));
        if self.known.insert(path.clone()) {
            self.entry(&path, PROGRAM, contents);
        }
    }

    /// Adds a program of this host's, with the libraries that it is linked to at the places where it looks for them.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("failed to read `{}`", from.display()))?;
        self.file(path, &contents);
        for library in libraries(from) {
            let contents = fs::read(&library).with_context(|| format!("failed to read `{library}`"))?;
            self.file(&library, &contents);
        }
        Ok(())
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("TRAILER!!!"), 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) {
        let name = path.to_string_lossy();
        let number = self.known.len() as u32;
        let size = contents.len() as u32;
        let length = name.len() as u32 + 1;
        // Magic, inode, mode, owner, group, links, time, size, device, special device, length of the name, checksum.
        let head = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in head {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

/// The files that a program is linked to, as the dynamic linker finds them; none for a static one.
fn libraries(program: &Path) -> Vec<String> {
    let listed = output("ldd", &[&program.to_string_lossy()]).unwrap_or_default();
    let path = |line: &str| {
        let line = line.trim();
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        Some(path.split_once(" (")?.0.to_owned()).filter(|path| path.starts_with('/'))
    };
    listed.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that heads have the length that the kernel expects, and that directories come before what is in them.
    #[test]
    fn archives_are_aligned_and_in_order() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", b"12345");
        archive.file("/a/b/d", b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGN, 0);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let names: Vec<&str> = text.split("070701").skip(1).map(|e| e[104..].split('\0').next().unwrap()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d", "TRAILER!!!"]);
    }
}
