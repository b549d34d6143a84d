//! The code of a target that is probed: whether it is as it was. Never what probes it.

use std::fs;
use std::os::unix::fs::FileExt as _;

use profiler::runtime::RUNTIMES;
use profiler::target::elf::Binary;
use profiler::target::process::{Placement, Process};

use crate::table::Table;
use crate::wait;

/// The places that are probed in a target, and what stands there in its file.
pub struct ProbedCode {
    memory: fs::File,
    /// Address, and the instruction's first byte.
    places: Vec<(u64, u8)>,
}

impl ProbedCode {
    /// Those of a process.
    ///
    /// # Panics
    /// It has no runtime that is known, or may not be looked into.
    pub fn of(pid: u32) -> ProbedCode {
        let process = Process::find(pid).expect("the target lives");
        let image = process.image().expect("it has an image");
        let data = fs::read(&image.path).expect("the image can be read");
        let binary = Binary::parse(&data).expect("the image is a program");
        let plan = RUNTIMES.iter().find_map(|runtime| runtime.detect(&binary).expect("it is well-formed"));
        let probes = plan.expect("the fixture uses Tokio").probes;
        let placements = process.placements(&image).expect("it has a memory map");
        let place = |offset: u64| {
            let holds = |p: &&Placement| (p.file_offset..p.file_offset + (p.end - p.start)).contains(&offset);
            let place = placements.iter().find(holds).expect("code is mapped");
            (place.start + offset - place.file_offset, data[offset as usize])
        };
        let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("its memory can be read");
        ProbedCode { memory, places: probes.iter().map(|probe| place(probe.file_offset)).collect() }
    }

    /// How many are not as in the file.
    ///
    /// # Panics
    /// The process has ended.
    pub fn changed(&self) -> usize {
        let changed = |&&(address, original): &&(u64, u8)| {
            let mut byte = [0];
            self.memory.read_exact_at(&mut byte, address).expect("code can be read");
            byte[0] != original
        };
        self.places.iter().filter(changed).count()
    }

    /// The same, once the kernel has restored them: it does so after the descriptors were closed.
    pub fn left(&self) -> usize {
        wait::until_or_last(|| self.changed(), |&changed| changed == 0)
    }

    /// A row of the table for that.
    pub fn is_restored(&self, table: &mut Table) {
        let left = self.left();
        table.holds("changed instructions", format!("0 of {}", self.places.len()), left, left == 0);
    }
}
