//! Where a program returns from accept(2): in its C library, or in itself when it is linked statically. A probe there
//! costs the target one trap per connection; a syscall tracepoint would cost every system call of the machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, Register};
use memmap2::Mmap;

use super::elf::Binary;
use super::process::{FileId, Process};

/// Numbers of accept4 and accept on x86-64.
const SYSCALLS: [u8; 2] = [0x20, 0x2b];
/// High byte of accept4's number (288); accept's (43) has none.
const HIGH: [u8; 2] = [1, 0];
/// Files that are remembered: images of as many containers.
const MOST: usize = 1024;
/// Instructions between the system call and the branch on its result.
const TO_BRANCH: usize = 4;
/// Where dynamic linkers find the C library, for a program that has not been linked yet.
const USUAL: [&str; 4] =
    ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib64/libc.so.6", "/usr/lib/libc.so.6"];

/// Instructions right after a successful or failed accept: the result is in rax, the listener's descriptor in rdi.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptSites {
    /// A path that opens the file, from this process's view.
    pub file: PathBuf,
    /// Offsets in the file.
    pub offsets: Vec<u64>,
}

/// What is known of files: processes share their C library.
#[derive(Default)]
pub struct AcceptFinder {
    offsets: HashMap<FileId, Vec<u64>>,
}

impl AcceptFinder {
    /// Looks for the sites in the C library that the process has loaded, in the one that it will load, or in its image.
    /// `None` where it makes the system call in a way that is not understood (musl, Go, a library of its own).
    pub fn find(&mut self, process: &Process) -> Option<AcceptSites> {
        let root = format!("/proc/{}/root", process.pid);
        let loaded = process.library(is_c_library).ok().flatten();
        let mut candidates: Vec<PathBuf> = loaded.into_iter().map(|library| library.path).collect();
        if candidates.is_empty() && is_dynamic(process) {
            candidates.extend(USUAL.map(|path| format!("{root}{path}").into()));
        }
        candidates.push(format!("/proc/{}/exe", process.pid).into());
        candidates.into_iter().find_map(|file| {
            let offsets = self.sites_in(&file).ok()?;
            (!offsets.is_empty()).then_some(AcceptSites { file, offsets })
        })
    }

    fn sites_in(&mut self, path: &PathBuf) -> io::Result<Vec<u64>> {
        let mut file = File::open(path)?;
        let id = FileId::of(&file.metadata()?);
        if let Some(offsets) = self.offsets.get(&id) {
            return Ok(offsets.clone());
        }
        // A library may be written to, unlike an image: it is read, not mapped.
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        let binary = Binary::parse(&data).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if self.offsets.len() >= MOST {
            self.offsets.clear();
        }
        let offsets = offsets(&binary);
        self.offsets.insert(id, offsets.clone());
        Ok(offsets)
    }
}

fn is_c_library(name: &str) -> bool {
    name == "libc.so.6" || (name.starts_with("libc-2.") && name.ends_with(".so"))
}

fn is_dynamic(process: &Process) -> bool {
    let Ok(image) = process.image() else { return false };
    // SAFETY: the file is a running program's: the kernel refuses to write to it or to truncate it (ETXTBSY).
    let Ok(data) = (unsafe { Mmap::map(&image.file) }) else { return false };
    Binary::parse(&data).is_ok_and(|binary| binary.interpreter)
}

/// File offsets of the branches behind every `mov eax, accept; syscall`.
fn offsets(binary: &Binary<'_>) -> Vec<u64> {
    let mut found = Vec::new();
    for (address, code) in binary.code() {
        for (at, window) in code.windows(7).enumerate() {
            let [0xb8, low, high, 0, 0, 0x0f, 0x05] = *window else { continue };
            if !SYSCALLS.iter().zip(HIGH).any(|(&l, h)| (l, h) == (low, high)) {
                continue;
            }
            let after = at + window.len();
            found.extend(branch(&code[after..], address + after as u64).and_then(|site| binary.file_offset(site)));
        }
    }
    found
}

/// The first conditional branch, where nothing before it changes the result or the descriptor.
fn branch(code: &[u8], address: u64) -> Option<u64> {
    let mut information = InstructionInfoFactory::new();
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    for instruction in decoder.into_iter().take(TO_BRANCH) {
        match instruction.flow_control() {
            FlowControl::ConditionalBranch => return Some(instruction.ip()),
            FlowControl::Next => {}
            _ => return None,
        }
        let spoiled = information.info(&instruction).used_registers().iter().any(|used| {
            let kept = matches!(used.register().full_register(), Register::RAX | Register::RDI);
            kept && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
        });
        if spoiled {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_returns_from_accept_in_its_c_library() {
        let own = Process::find(std::process::id()).unwrap();
        let mut finder = AcceptFinder::default();
        let sites = finder.find(&own).unwrap();
        assert_eq!(finder.find(&own).as_ref(), Some(&sites), "what is known is the same");
        assert!(sites.file.to_string_lossy().contains("libc"), "{sites:?}");
        // accept and accept4, each with and without other threads in the process.
        assert_eq!(sites.offsets.len(), 4, "{sites:?}");
        let library = std::fs::read(&sites.file).unwrap();
        for offset in sites.offsets {
            let opcode = library[offset as usize];
            assert!((0x70..0x80).contains(&opcode) || opcode == 0x0f, "{opcode:#x} is no conditional branch");
        }
    }

    #[test]
    fn a_changed_result_or_descriptor_is_no_site() {
        // cmp rax, -4096; ja +2
        assert_eq!(branch(&[0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, 0x77, 0x02], 0), Some(6));
        // mov edi, r8d; ja +2
        assert_eq!(branch(&[0x44, 0x89, 0xc7, 0x77, 0x02], 0), None);
        // neg eax; ja +2
        assert_eq!(branch(&[0xf7, 0xd8, 0x77, 0x02], 0), None);
        // ret
        assert_eq!(branch(&[0xc3, 0x77, 0x02], 0), None);
    }
}
