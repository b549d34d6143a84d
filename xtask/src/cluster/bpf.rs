//! What the kernel has of BPF, by its own numbers, and the code of a target as it is in memory. Never through the profiler.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, bail};

// Commands of bpf(2), include/uapi/linux/bpf.h.
const PROG_GET_NEXT_ID: i32 = 11;
const LINK_GET_NEXT_ID: i32 = 31;

/// Numbers of programs and links; the kernel gives none twice for long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub programs: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// All that there are.
    pub fn all() -> Result<Objects> {
        Ok(Objects { programs: ids(PROG_GET_NEXT_ID)?, links: ids(LINK_GET_NEXT_ID)? })
    }

    /// Without others.
    pub fn without(&self, others: &Objects) -> Objects {
        let less = |own: &BTreeSet<u32>, others: &BTreeSet<u32>| own.difference(others).copied().collect();
        Objects { programs: less(&self.programs, &others.programs), links: less(&self.links, &others.links) }
    }

    /// Those that are also among others.
    pub fn among(&self, others: &Objects) -> Objects {
        self.without(&self.without(others))
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.programs.len() + self.links.len()
    }
}

impl std::fmt::Display for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} BPF programs and {} links", self.programs.len(), self.links.len())
    }
}

fn ids(command: i32) -> Result<BTreeSet<u32>> {
    #[repr(C)]
    struct Attributes {
        start: u32,
        next: u32,
        flags: u32,
    }
    let mut attributes = Attributes { start: 0, next: 0, flags: 0 };
    let mut ids = BTreeSet::new();
    loop {
        // SAFETY: the attributes are live, writable, and of the size that is passed.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<Attributes>()) };
        if result != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ENOENT) {
                return Ok(ids);
            }
            bail!("failed to list BPF objects: {error}");
        }
        ids.insert(attributes.next);
        attributes.start = attributes.next;
    }
}

/// How many bytes of a process's code are not as in its file: each place that is probed is one.
pub fn changed_code(pid: u32) -> Result<usize> {
    let program = fs::read(format!("/proc/{pid}/exe")).context("failed to read the target's program")?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("failed to read the target's memory map")?;
    let path = fs::read_link(format!("/proc/{pid}/exe"))?.display().to_string();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).context("failed to read the target's memory")?;
    let mut changed = 0;
    for (start, length, offset) in maps.lines().filter(|line| line.ends_with(&path)).filter_map(code) {
        let file = program.get(offset..).unwrap_or_default();
        let mut code = vec![0; length.min(file.len())];
        memory.read_exact_at(&mut code, start).context("failed to read the target's code")?;
        changed += code.iter().zip(file).filter(|(is, was)| is != was).count();
    }
    Ok(changed)
}

/// Where code is mapped: address, length, and place in the file.
fn code(line: &str) -> Option<(u64, usize, usize)> {
    let mut words = line.split_whitespace();
    let (range, permissions, offset) = (words.next()?, words.next()?, words.next()?);
    let (start, end) = range.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    permissions.contains('x').then_some((start, (end - start) as usize, usize::from_str_radix(offset, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_may_be_run() {
        let line = "7f0000001000-7f0000003000 r-xp 00002000 fe:00 123  /fixture";
        assert_eq!(code(line), Some((0x7f00_0000_1000, 0x2000, 0x2000)));
        assert_eq!(code("7f0000001000-7f0000003000 r--p 00002000 fe:00 123  /fixture"), None);
    }
}
