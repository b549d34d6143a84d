//! What iodine defers, a server that Rage runs on: blocks that its event loop runs later, in their order, on any of its threads.
//!
//! iodine_defer.c puts a block into the queue of fio.c (`fio_defer`, exported) with the function that will call it
//! (`iodine_defer_performe_once`, static: there is a symbol unless the extension was stripped, and installing a gem does not strip). The
//! queue's loop (`fio_defer_perform`, exported) calls whatever is in it, the server's own work as well.

use std::collections::BTreeSet;

use iced_x86::{FlowControl, Instruction, Register};
use profiler_common::deferred::tells;
use profiler_common::map::Argument;

use crate::runtime::{Extension, ExtensionPlan, Hook, IdPlace, ProbeSpec};
use crate::target::elf::{Binary, Function};
use crate::target::site::code::Body;
use crate::target::site::{self, Site, is_emulated};

/// The extension.
pub const IODINE: Extension = Extension { name: "iodine", is, plan };

/// Defers any work: what runs it, and two words that it is given, the first of which is the block.
const DEFER: &str = "fio_defer";
/// Runs a block.
const RUN: &str = "iodine_defer_performe_once";
/// Runs all that there is in the queue.
const LOOP: &str = "fio_defer_perform";
/// Instructions after a call by which the loop has to go on.
const NEAR: usize = 16;

/// Whether a file is it, by its name: `iodine_ext.so` since 0.7.57, `iodine.so` before.
fn is(name: &str) -> bool {
    matches!(name, "iodine_ext.so" | "iodine.so")
}

fn plan(binary: &Binary<'_>) -> Result<ExtensionPlan, String> {
    let exported = |name: &str| binary.exported(name).ok_or_else(|| format!("it does not export `{name}`"));
    let runs: BTreeSet<u64> = binary.symbols.iter().filter(|s| s.name == RUN).map(|s| s.address).collect();
    let runs: Vec<u64> = runs.into_iter().collect();
    let [run] = runs[..] else {
        return Err(match runs.len() {
            0 => format!("it has no symbol `{RUN}`: it was stripped"),
            many => format!("{many} functions are called `{RUN}`"),
        });
    };
    let defer = entry(binary, DEFER, exported(DEFER)?, Register::RSI)?;
    // The function that will run it is looked at there, too.
    let function = entry(binary, DEFER, exported(DEFER)?, Register::RDI)?;
    if function.argument != Argument::Rdi {
        return Err(format!("where `{DEFER}` can be probed, what it was given has gone elsewhere"));
    }
    let begin = entry(binary, RUN, run, Register::RDI)?;
    let mut sites =
        vec![(defer.address, defer.argument, tells::DEFERRED), (begin.address, begin.argument, tells::BEGINS)];
    let ends = after_work(binary, exported(LOOP)?)?;
    sites.extend(ends.into_iter().map(|address| (address, Argument::Rdi, tells::ENDS)));
    let probe = |(address, argument, tells): (u64, Argument, i64)| {
        Some(ProbeSpec {
            hook: Hook::Deferred,
            file_offset: binary.file_offset(address)?,
            argument,
            displacement: tells as i16,
            kind: None,
            id: IdPlace::Nowhere,
            emulated: true,
        })
    };
    let probes = sites.into_iter().map(probe).collect::<Option<_>>().ok_or("its code is not in the file")?;
    Ok(ExtensionPlan { probes, deferred_function: run })
}

/// Where every call of a function comes by while an argument is in a register.
fn entry(binary: &Binary<'_>, name: &str, address: u64, argument: Register) -> Result<Site, String> {
    let site = site::from_entry(binary, function(binary, name, address)?, argument);
    site.filter(|site| site.emulated && site.argument != Argument::Stack)
        .ok_or_else(|| format!("`{name}` begins with nothing that the kernel emulates"))
}

fn function<'b>(binary: &'b Binary<'_>, name: &str, address: u64) -> Result<&'b Function, String> {
    let function = binary.function_at(address).filter(|function| function.start == address);
    function.ok_or_else(|| format!("where `{name}` ends is not known"))
}

/// Where the loop goes on after each call of what it took from the queue.
fn after_work(binary: &Binary<'_>, address: u64) -> Result<BTreeSet<u64>, String> {
    // A copy of it within another function would run work whose end is not seen.
    let mut entries = binary.entries_of_import(LOOP);
    entries.push(address);
    if binary.relative_calls(&entries).is_empty() {
        return Err(format!("nothing calls `{LOOP}`: there are copies of it"));
    }
    let body = Body::decode(binary, function(binary, LOOP, address)?).ok_or("its code is not in the file")?;
    let calls = body.instructions.iter().enumerate().filter(|(_, one)| calls_work(one));
    let sites: Option<BTreeSet<u64>> = calls.map(|(call, _)| goes_on(&body.instructions[call + 1..])).collect();
    match sites {
        Some(sites) if sites.is_empty() => Err(format!("`{LOOP}` does not call what is deferred")),
        Some(sites) => Ok(sites),
        None => Err(format!("after what is deferred `{LOOP}` goes on with nothing that the kernel emulates")),
    }
}

/// Whether it calls what was read from the queue: calls of functions of other libraries are relative, or through a word that is.
fn calls_work(one: &Instruction) -> bool {
    one.flow_control() == FlowControl::IndirectCall && !one.is_ip_rel_memory_operand()
}

/// The first instruction that the kernel emulates, without a way past it.
fn goes_on(code: &[Instruction]) -> Option<u64> {
    for one in code.iter().take(NEAR) {
        if is_emulated(one) {
            return Some(one.ip());
        }
        if one.flow_control() != FlowControl::Next {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(code: &[u8]) -> Vec<Instruction> {
        Body::of(code, 0x1000).instructions
    }

    #[test]
    fn the_loop_goes_on_with_a_jump() {
        // call r8; jmp; and: call [rbx+8]; mov eax, ebx; xchg al, [rip]; test al, al; jne
        let near = decode(&[0x41, 0xff, 0xd0, 0xeb, 0x10]);
        assert!(calls_work(&near[0]));
        assert_eq!(goes_on(&near[1..]), Some(0x1003));
        let far = decode(&[0xff, 0x53, 0x08, 0x89, 0xd8, 0x86, 0x05, 0, 0, 0, 0, 0x84, 0xc0, 0x75, 0xf0]);
        assert!(calls_work(&far[0]));
        assert_eq!(goes_on(&far[1..]), Some(0x100d));
    }

    #[test]
    fn other_calls_are_none_of_work_and_returns_are_no_way_on() {
        // call [rip+0x10]; call +0; then: call rax; ret
        let others = decode(&[0xff, 0x15, 0x10, 0, 0, 0, 0xe8, 0, 0, 0, 0]);
        assert!(others.iter().all(|one| !calls_work(one)));
        let last = decode(&[0xff, 0xd0, 0xc3, 0xeb, 0x00]);
        assert!(calls_work(&last[0]));
        assert_eq!(goes_on(&last[1..]), None);
    }

    #[test]
    fn it_is_told_by_its_name() {
        assert!(is("iodine_ext.so") && is("iodine.so"));
        assert!(!is("libiodine.so") && !is("iodine.so.1") && !is("iodine"));
    }
}
