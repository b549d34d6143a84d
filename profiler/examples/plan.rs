//! Prints how a file would be observed, and how long it took to find out: `plan FILE [--probes]`.

use std::process::ExitCode;
use std::time::Instant;

use profiler::runtime::{Plan, RUNTIMES};
use profiler::target::elf::Binary;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else {
        eprintln!("usage: plan FILE [--probes]");
        return ExitCode::from(2);
    };
    let probes = arguments.next().is_some_and(|flag| flag == "--probes");
    match show(&path, probes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to plan `{path}`: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(path: &str, probes: bool) -> Result<(), Box<dyn std::error::Error>> {
    let data = std::fs::read(path)?;
    let start = Instant::now();
    let binary = Binary::parse(&data)?;
    let parsed = start.elapsed();
    println!(
        "{path}: {} functions, {} symbols, {} relocations, parsed in {parsed:.1?}",
        binary.functions.len(),
        binary.symbols.len(),
        binary.relocations().len()
    );
    for runtime in RUNTIMES {
        let start = Instant::now();
        let plan = runtime.detect(&binary)?;
        let took = start.elapsed();
        match plan {
            Some(plan) => print(&plan, took, probes),
            None => println!("not {} ({took:.1?})", runtime.name()),
        }
    }
    Ok(())
}

fn print(plan: &Plan, took: std::time::Duration, probes: bool) {
    let version = plan.version.as_deref().unwrap_or("of unknown version");
    println!("{} {version}, lineage {:?}, outcome {}, planned in {took:.1?}", plan.runtime, plan.lineage, plan.outcome);
    for signal in &plan.signals {
        match &signal.state {
            Ok(how) => println!("  {:<14} {how}", signal.name),
            Err(why) => println!("  {:<14} not seen: {why}", signal.name),
        }
    }
    let single_stepped = plan.probes.iter().filter(|probe| !probe.emulated).count();
    println!("  {} types, {} probes, {single_stepped} single-stepped", plan.types.len(), plan.probes.len());
    let sites =
        |n: usize| plan.types.iter().filter(|task| !task.internal && task.spawn_sites.len().min(2) == n).count();
    println!("  spawn sites: one of {} types, several of {}, none of {}", sites(1), sites(2), sites(0));
    if !probes {
        return;
    }
    for (vtable, kind) in &plan.type_by_vtable {
        let task = &plan.types[kind.0 as usize];
        println!("  type {} {vtable:#x} blocking={} internal={} {}", kind.0, task.blocking, task.internal, task.name);
        task.spawn_sites.iter().for_each(|site| println!("    spawned at {site}"));
    }
    for probe in &plan.probes {
        println!(
            "  probe {:?} {:#x} {:?}{:+} kind={} id={:?} emulated={}",
            probe.hook,
            probe.file_offset,
            probe.argument,
            probe.displacement,
            probe.kind.map_or(-1, |kind| i64::from(kind.0)),
            probe.id,
            probe.emulated
        );
    }
}
