//! Tokio: hooks found by the shape of data and code.

mod complete;
mod lineage;
mod location;
mod name;
mod poll;
mod reach;
mod spawn;
mod version;
mod vtable;
mod walk;

use std::collections::HashMap;

use profiler_common::event::{TaskRecord, flag, kind};
use profiler_common::map::{TaskLayout, error_order};

use self::reach::Reach;
use self::version::Version;
use self::vtable::{Layout, Vtable};
use self::walk::TokioWalk;
use super::{DetectError, Hook, IdPlace, Instance, Lineage, Plan, ProbeSpec, Runtime, Signal, Untranslated, Walk};
use crate::event::{Outcome, Parent, TaskEvent, TaskRef, TypeId};
use crate::target::elf::Binary;
use crate::target::site::Site;

/// The adapter.
pub struct Tokio;

impl Runtime for Tokio {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn detect(&self, binary: &Binary<'_>) -> Result<Option<Plan>, DetectError> {
        let version = Version::find(binary.data);
        let vtables = vtable::by_shape(binary);
        if !vtables.is_empty() {
            return Ok(Some(plan(binary, version, vtable::WITH_OFFSETS, &vtables, "by shape")));
        }
        let Some(version) = version else { return Ok(None) };
        let by_symbol = vtable::by_symbol(binary, version).filter(|(_, vtables)| !vtables.is_empty());
        Ok(Some(match by_symbol {
            Some((layout, vtables)) => plan(binary, Some(version), layout, &vtables, "by symbol"),
            None => without_probes(version),
        }))
    }

    fn poll_probes(&self, binary: &Binary<'_>) -> Option<Vec<ProbeSpec>> {
        let vtables = vtable::by_shape(binary);
        if !vtables.is_empty() {
            return poll_specs(binary, vtable::WITH_OFFSETS, &vtables);
        }
        let (layout, vtables) = vtable::by_symbol(binary, Version::find(binary.data)?)?;
        poll_specs(binary, layout, &vtables)
    }

    fn walk(&self, binary: &Binary<'_>, load_bias: u64) -> Result<Box<dyn Walk>, String> {
        let vtables = vtable::by_shape(binary);
        if vtables.is_empty() {
            let version = Version::find(binary.data).map_or_else(String::new, |version| format!(" {version}"));
            return Err(format!("Tokio{version} does not tell where a task keeps its place in the list of tasks"));
        }
        let local = binary.thread_local.ok_or("the binary has no thread-local storage")?;
        let walk = TokioWalk::new(&vtables, load_bias, local);
        Ok(Box::new(walk.ok_or("the types of tasks do not tell where a task keeps its place in the list of tasks")?))
    }
}

/// The signals of a plan, in the order of the rows.
const SIGNALS: [&str; 5] = ["task_spawn", "task_complete", "task_parent", "task_outcome", "task_name"];

/// A plan that says why nothing can be observed.
fn without_probes(version: Version) -> Plan {
    let reason = if version.minor < vtable::OLDEST {
        format!("Tokio {version} is older than 1.{}", vtable::OLDEST)
    } else if version.minor < 23 {
        format!("Tokio {version} is only understood with symbols, and this binary is stripped")
    } else {
        format!("no task type of Tokio {version} was found: the binary may never spawn a task")
    };
    Plan {
        runtime: "tokio",
        version: Some(version.to_string()),
        probes: Vec::new(),
        signals: SIGNALS.iter().map(|&name| Signal { name, state: Err(reason.clone()) }).collect(),
        layout: TaskLayout::default(),
        lineage: Lineage::Unknown,
        outcome: false,
        types: Vec::new(),
        type_by_vtable: HashMap::new(),
    }
}

fn plan(binary: &Binary<'_>, version: Option<Version>, layout: Layout, vtables: &[Vtable], how: &str) -> Plan {
    let type_id = |index: usize| TypeId(index as u32);
    let creations = spawn::find(binary, layout, vtables);
    let completions = complete::sites(binary);
    let mut probes = Vec::new();
    probes
        .extend(creations.found.iter().filter_map(|c| spec(binary, Hook::Spawn, &c.site, c.vtable.map(type_id), c.id)));
    let id = if layout.id_in_vtable.is_some() { IdPlace::Vtable } else { IdPlace::Nowhere };
    probes.extend(completions.iter().filter_map(|site| spec(binary, Hook::Complete, site, None, id)));
    let spawn = match (&creations.found[..], creations.missed) {
        ([], _) => Err("no creation of a task was understood".to_owned()),
        (found, 0) => Ok(format!("{how}, {} creation sites", found.len())),
        (found, missed) => Err(format!("{missed} of {} creation sites were not understood", found.len() + missed)),
    };
    let complete = if completions.is_empty() {
        Err("the transition to the complete state was not found".to_owned())
    } else {
        Ok(format!("by shape, {} sites", completions.len()))
    };
    let mut reach = Reach::new(binary);
    let current_task = lineage::current_task(binary, &mut reach, version, layout, vtables);
    let (lineage, parent) = match &current_task {
        Ok((_, how)) => (Lineage::ThreadLocal, Ok(format!("{how}, in thread-local storage"))),
        Err(reason) => match poll_specs(binary, layout, vtables) {
            Some(polls) => {
                probes.extend(polls);
                (Lineage::PollStack, Ok(format!("by a stack of polls: {reason}")))
            }
            None => (Lineage::Unknown, Err(format!("{reason}, and the ends of polls were not found"))),
        },
    };
    let (types, named) = name::types(binary, &mut reach, layout, vtables);
    let names = match named {
        0 => Err("neither symbols nor source locations name any task".to_owned()),
        named => Ok(format!("{named} of {} types", types.len())),
    };
    Plan {
        runtime: "tokio",
        version: version.map(|version| version.to_string()),
        probes,
        signals: SIGNALS
            .into_iter()
            .zip([spawn, complete, parent, outcome_signal(layout), names])
            .map(|(name, state)| Signal { name, state })
            .collect(),
        layout: TaskLayout {
            vtable: layout.vtable_in_header,
            id_offset_in_vtable: layout.id_in_vtable.unwrap_or(0),
            current_task_tls: current_task.map_or(0, |(word, _)| word),
            error_order: error_order(version),
            ..TaskLayout::default()
        },
        lineage,
        outcome: layout.id_in_vtable.is_some(),
        types,
        type_by_vtable: vtables.iter().enumerate().map(|(index, v)| (v.address, type_id(index))).collect(),
    }
}

/// The order of `JoinError`'s fields as the compiler lays them out: ids are non-zero since 1.40, which moved them first.
/// Seen up to 1.38 and from 1.44 on; in between both are looked for.
fn error_order(version: Option<Version>) -> u32 {
    match version.map(|version| version.minor) {
        Some(..=38) => error_order::PAYLOAD_FIRST,
        Some(44..) => error_order::ID_FIRST,
        _ => error_order::UNKNOWN,
    }
}

fn outcome_signal(layout: Layout) -> Result<String, String> {
    match layout.id_in_vtable {
        Some(_) => Ok("by the result that the task stores".to_owned()),
        None => {
            Err("this version's results cannot be read: cancelled tasks are told, panics and returns are not"
                .to_owned())
        }
    }
}

/// The probes of a poll stack: starts and ends of all polls. `None` where either is not found.
fn poll_specs(binary: &Binary<'_>, layout: Layout, vtables: &[Vtable]) -> Option<Vec<ProbeSpec>> {
    let (starts, ends) = (poll::starts(binary, vtables), poll::ends(binary, layout));
    if starts.is_empty() || ends.is_empty() {
        return None;
    }
    let of = |hook, sites: Vec<Site>| {
        sites.into_iter().filter_map(|site| spec(binary, hook, &site, None, IdPlace::Nowhere)).collect::<Vec<_>>()
    };
    let mut specs = of(Hook::PollStart, starts);
    specs.extend(of(Hook::PollEnd, ends));
    Some(specs)
}

/// A probe at a site.
fn spec(binary: &Binary<'_>, hook: Hook, site: &Site, kind: Option<TypeId>, id: IdPlace) -> Option<ProbeSpec> {
    Some(ProbeSpec {
        hook,
        file_offset: binary.file_offset(site.address)?,
        argument: site.argument,
        displacement: site.displacement,
        kind,
        id,
        emulated: site.emulated,
    })
}

/// Makes a neutral event of a raw record.
pub(super) fn translate(instance: &Instance<'_>, record: &TaskRecord) -> Result<TaskEvent, Untranslated> {
    let plan = instance.plan;
    let kind = if record.vtable == 0 {
        // The site alone tells the type.
        plan.probes.get(record.header.site as usize).and_then(|probe| probe.kind)
    } else {
        record.vtable.checked_sub(instance.load_bias).and_then(|vtable| plan.type_by_vtable.get(&vtable).copied())
    };
    let kind_of_task = kind.ok_or(Untranslated::ForeignVtable)?;
    let task = TaskRef { address: record.task, id: (record.id != 0).then_some(record.id) };
    let flags = record.header.flags;
    match record.header.kind {
        kind::TASK_SPAWNED => Ok(TaskEvent::Spawned { task, kind: kind_of_task, parent: parent(flags, record.parent) }),
        kind::TASK_COMPLETED => Ok(TaskEvent::Completed { task, kind: kind_of_task, outcome: outcome(flags) }),
        _ => Err(Untranslated::ForeignKind),
    }
}

fn parent(flags: u16, parent: u64) -> Parent {
    match parent {
        _ if flags & flag::PARENT_KNOWN == 0 => Parent::Unknown,
        0 => Parent::None,
        address if flags & flag::PARENT_IS_ADDRESS != 0 => Parent::Address(address),
        id => Parent::Id(id),
    }
}

/// A task that was asked to cancel may have returned first: only its result tells. Where that cannot be read, the
/// request is taken for the deed.
fn outcome(flags: u16) -> Outcome {
    let known = flags & flag::OUTCOME_KNOWN != 0;
    if flags & flag::PANICKED != 0 {
        Outcome::Panicked
    } else if flags & flag::CANCELLED != 0 || (!known && flags & flag::CANCEL_REQUESTED != 0) {
        Outcome::Cancelled
    } else if known {
        Outcome::Completed
    } else {
        Outcome::Unknown
    }
}

#[cfg(test)]
mod tests;
