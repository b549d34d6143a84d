//! The code of a target as it is in memory. Never through the profiler.

use std::fs;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};

/// How many bytes of a process's code are not as in its file: each place that is probed is one.
pub fn changed(pid: u32) -> Result<usize> {
    let program = fs::read(format!("/proc/{pid}/exe")).context("failed to read the target's program")?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("failed to read the target's memory map")?;
    let path = fs::read_link(format!("/proc/{pid}/exe"))?.display().to_string();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).context("failed to read the target's memory")?;
    let mut changed = 0;
    for (start, length, offset) in maps.lines().filter(|line| line.ends_with(&path)).filter_map(mapped) {
        let file = program.get(offset..).unwrap_or_default();
        let mut code = vec![0; length.min(file.len())];
        memory.read_exact_at(&mut code, start).context("failed to read the target's code")?;
        changed += code.iter().zip(file).filter(|(is, was)| is != was).count();
    }
    Ok(changed)
}

/// Where code is mapped: address, length, and place in the file.
fn mapped(line: &str) -> Option<(u64, usize, usize)> {
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
        assert_eq!(mapped(line), Some((0x7f00_0000_1000, 0x2000, 0x2000)));
        assert_eq!(mapped("7f0000001000-7f0000003000 r--p 00002000 fe:00 123  /fixture"), None);
    }
}
