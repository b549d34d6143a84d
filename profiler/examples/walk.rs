//! Walks a running process once, and prints what was seen.
use profiler::runtime::Effort;
use profiler::runtime::RUNTIMES;
use profiler::target::{elf::Binary, memory::ProcessMemory, process::Process};
use std::collections::BTreeMap;
fn main() {
    let pid: u32 = std::env::args().nth(1).unwrap().parse().unwrap();
    let process = Process::find(pid).unwrap();
    let image = process.image().unwrap();
    let data = std::fs::read(&image.path).unwrap();
    let binary = Binary::parse(&data).unwrap();
    let plan = RUNTIMES.iter().find_map(|r| r.detect(&binary).unwrap()).unwrap();
    let placements = process.placements(&image).unwrap();
    let bias = placements.iter().find_map(|p| Some(p.start.wrapping_sub(binary.address_of(p.file_offset)?))).unwrap();
    let mut walk = RUNTIMES[0].walk(&binary, bias).unwrap();
    let memory = ProcessMemory { pid };
    for _ in 0..3 {
        let begin = std::time::Instant::now();
        let now = profiler::clock::monotonic_ns();
        let effort =
            Effort { deadline_ns: now + 2_000_000_000, most_tasks: 2_000_000, now_ns: profiler::clock::monotonic_ns };
        let mut states = BTreeMap::new();
        let walked = walk
            .walk(&memory, effort, &mut |tasks| {
                tasks.iter().for_each(|t| *states.entry(t.activity).or_insert(0u64) += 1)
            })
            .unwrap();
        println!(
            "{:?} {:?} spawned {:?} handed {} {states:?} in {:?}",
            walked.runtimes,
            walked.tasks.as_ref().map(|t| (t.alive(), t.runnable, t.consistent)),
            walked.spawned,
            walked.handed,
            begin.elapsed()
        );
        if let Ok(tally) = &walked.tasks {
            for (kind, n) in &tally.by_type {
                println!("   {n} {}", plan.types[kind.0 as usize].name);
            }
        }
    }
}
