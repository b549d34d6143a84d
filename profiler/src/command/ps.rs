//! `profiler ps`: processes, their runtimes, and what can be measured.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;

use memmap2::Mmap;

use crate::runtime::{RUNTIMES, library_of, refusal_of};
use crate::target::elf::Binary;
use crate::target::process::{self, Process, ProcessError};

/// A larger file is not looked into: a listing of all processes must stay quick.
const MAX_IMAGE_BYTES: u64 = 512 << 20;

/// Shown where there is no runtime.
const NONE: &str = "-";

#[derive(Clone)]
struct Verdict {
    runtime: String,
    tasks: String,
}

/// A table of all processes that can be seen.
pub fn list() -> String {
    let mut rows = Vec::new();
    // Processes of one build are recognised once.
    let mut seen: HashMap<(u64, u64), Verdict> = HashMap::new();
    let mut unreadable = 0;
    for pid in process::all() {
        let Ok(process) = Process::find(pid) else { continue };
        match process.image() {
            Ok(image) => {
                let verdict = seen.entry(image.identity).or_insert_with(|| examine(&process, &image.file)).clone();
                let verdict = if verdict.runtime == NONE { refuse(&process).unwrap_or(verdict) } else { verdict };
                rows.push((process, verdict));
            }
            Err(ProcessError::NotPermitted { .. }) => unreadable += 1,
            Err(_) => {}
        }
    }
    rows.sort_by_key(|(process, verdict)| (verdict.runtime == NONE, process.pid));
    let mut text = format!("{:>8}  {:<16} {:<16} {}\n", "PID", "PROCESS", "RUNTIME", "TASKS");
    for (process, verdict) in &rows {
        let _ = writeln!(text, "{:>8}  {:<16} {:<16} {}", process.pid, process.comm, verdict.runtime, verdict.tasks);
    }
    let _ = writeln!(text, "\nRun queue and accept queue are measured for every process.");
    if unreadable > 0 {
        let _ = writeln!(
            text,
            "Not shown, as they may not be looked into (CAP_SYS_PTRACE for another user's): {unreadable}."
        );
    }
    text
}

fn none(tasks: &str) -> Verdict {
    Verdict { runtime: NONE.to_owned(), tasks: tasks.to_owned() }
}

fn examine(process: &Process, file: &fs::File) -> Verdict {
    if file.metadata().is_ok_and(|m| m.len() > MAX_IMAGE_BYTES) {
        return none("not looked into: the program is too large");
    }
    // SAFETY: the file is a running program's: the kernel refuses to write to it or to truncate it (ETXTBSY).
    let Ok(data) = (unsafe { Mmap::map(file) }) else { return none(NONE) };
    let Ok(binary) = Binary::parse(&data) else { return none(NONE) };
    let Some((runtime, is)) = library_of(&binary) else { return judge(&binary) };
    let unsupported = |why: &str| Verdict { runtime: runtime.name().to_owned(), tasks: why.to_owned() };
    match process.library(is) {
        Ok(Some(library)) => {
            let parsed = |bytes: Vec<u8>| Binary::parse(&bytes).map(|binary| judge(&binary)).map_err(|e| e.to_string());
            let judged = library.read_library().and_then(parsed);
            judged.unwrap_or_else(|why| unsupported(&format!("unsupported: its library cannot be read: {why}")))
        }
        Ok(None) => unsupported("unsupported: its library is not loaded"),
        Err(e) => unsupported(&format!("unsupported: {e}")),
    }
}

/// What is said of an implementation that is known not to be supported: its executable may run others, too.
fn refuse(process: &Process) -> Option<Verdict> {
    let why = refusal_of(process)?;
    Some(none(&format!("unsupported: {why}")))
}

/// What the binary that has the runtime in it tells.
fn judge(binary: &Binary<'_>) -> Verdict {
    for runtime in RUNTIMES {
        match runtime.detect(binary) {
            Ok(Some(plan)) => {
                let version = plan.version.as_deref().unwrap_or("?");
                let lacking: Vec<&str> =
                    plan.signals.iter().filter(|signal| signal.state.is_err()).map(|signal| signal.name).collect();
                let types = match plan.types.len() {
                    0 => "types are met while it runs".to_owned(),
                    types => format!("{types} types"),
                };
                let tasks = match (plan.probes.is_empty(), lacking.is_empty()) {
                    (true, _) => "unsupported: nothing to probe was found".to_owned(),
                    (false, true) => format!("yes: {types}"),
                    (false, false) => format!("yes: {types}; not {}", lacking.join(", ")),
                };
                return Verdict { runtime: format!("{} {version}", plan.runtime), tasks };
            }
            Ok(None) => {}
            Err(e) => return none(&e.to_string()),
        }
    }
    none(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_listed() {
        let text = list();
        let pid = std::process::id().to_string();
        assert!(text.lines().any(|line| line.trim_start().starts_with(&pid)), "{text}");
    }
}
