//! Tokio: hooks found by the shape of data and code.

mod complete;
mod lineage;
mod location;
mod name;
mod poll;
mod reach;
mod spawn;
mod spawn_site;
mod version;
mod vtable;
mod wake;
mod walk;

use profiler_common::map::{TaskLayout, error_order};

use self::reach::Reach;
use self::version::Version;
use self::vtable::{Layout, Vtable};
use self::walk::{TokioWalk, Types};
use super::{DetectError, Hook, IdPlace, Lineage, Plan, ProbeSpec, Runtime, Signal, SpawnPath, SpawnSite, WalkAt};
use crate::event::TypeId;
use crate::target::elf::Binary;
use crate::target::site::Site;
use crate::target::site::code::Bodies;

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

    fn spawn_sites(&self, binary: &Binary<'_>, stacks: &[SpawnPath]) -> Vec<Option<SpawnSite>> {
        let Some((layout, vtables)) = layout_and_vtables(binary) else { return vec![None; stacks.len()] };
        let mut bodies = Bodies::new(binary);
        let creations = spawn::find(binary, &mut bodies, layout, &vtables);
        let mut reach = Reach::new(binary);
        let mut finder = spawn_site::Finder::new(binary, &mut reach, &mut bodies, &creations.loads);
        stacks.iter().map(|stack| finder.on_path(stack)).collect()
    }

    fn walk(&self, binary: &Binary<'_>) -> Result<WalkAt, String> {
        let vtables = vtable::by_shape(binary);
        if vtables.is_empty() {
            let version = Version::find(binary.data).map_or_else(String::new, |version| format!(" {version}"));
            return Err(format!("Tokio{version} does not tell where a task keeps its place in the list of tasks"));
        }
        let local = binary.thread_local.ok_or("the binary has no thread-local storage")?;
        let types = Types::new(&vtables);
        let types = types.ok_or("the types of tasks do not tell where a task keeps its place in the list of tasks")?;
        Ok(Box::new(move |load_bias| Box::new(TokioWalk::new(types.at(load_bias), local))))
    }
}

fn layout_and_vtables(binary: &Binary<'_>) -> Option<(Layout, Vec<Vtable>)> {
    let vtables = vtable::by_shape(binary);
    if !vtables.is_empty() {
        return Some((vtable::WITH_OFFSETS, vtables));
    }
    vtable::by_symbol(binary, Version::find(binary.data)?)
}

/// The signals of a plan, in the order of the rows.
const SIGNALS: [&str; 7] =
    ["task_spawn", "task_complete", "task_parent", "task_outcome", "task_name", "task_polls", "task_wakes"];

/// A plan that says why nothing can be observed.
fn without_probes(version: Version) -> Plan {
    let reason = if version.minor < vtable::OLDEST {
        format!("Tokio {version} is older than 1.{}", vtable::OLDEST)
    } else if version.minor < 23 {
        format!("Tokio {version} is only understood with symbols, and this binary is stripped")
    } else {
        format!("no task type of Tokio {version} was found: the binary may never spawn a task")
    };
    Plan::without_probes("tokio", Some(version.to_string()), &SIGNALS, &reason)
}

fn plan(binary: &Binary<'_>, version: Option<Version>, layout: Layout, vtables: &[Vtable], how: &str) -> Plan {
    let type_id = |index: usize| TypeId(index as u32);
    let mut bodies = Bodies::new(binary);
    let creations = spawn::find(binary, &mut bodies, layout, vtables);
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
    let polls = poll_specs(binary, layout, vtables);
    let (lineage, parent) = match (&current_task, &polls) {
        (Ok((_, how)), _) => (Lineage::ThreadLocal, Ok(format!("{how}, in thread-local storage"))),
        (Err(reason), Ok(_)) => (Lineage::PollStack, Ok(format!("by a stack of polls: {reason}"))),
        (Err(reason), Err(why)) => (Lineage::Unknown, Err(format!("{reason}, and {why}"))),
    };
    let polls = polls.map(|(specs, how)| {
        probes.extend(specs);
        how
    });
    let wakes = wake_specs(binary).map(|(specs, how)| {
        probes.extend(specs);
        how
    });
    let (mut types, named) = name::types(binary, &mut reach, layout, vtables);
    let sites = spawn_site::by_type(binary, &mut reach, &mut bodies, &creations, types.len());
    types.iter_mut().zip(sites).for_each(|(task, sites)| task.spawn_sites = sites);
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
            .zip([spawn, complete, parent, outcome_signal(layout), names, polls, wakes])
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
        polls: poll::code(binary, vtables),
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

/// The probes at the starts and ends of all polls, and how they were found.
fn poll_specs(binary: &Binary<'_>, layout: Layout, vtables: &[Vtable]) -> Result<(Vec<ProbeSpec>, String), String> {
    let starts = specs(binary, Hook::PollStart, &poll::starts(binary, vtables));
    let ends = specs(binary, Hook::PollEnd, &poll::ends(binary, layout));
    if starts.is_empty() || ends.is_empty() {
        return Err("the ends of polls were not found".to_owned());
    }
    let how = format!("by shape, {} starts, {} ends", starts.len(), ends.len());
    Ok((starts.into_iter().chain(ends).collect(), how))
}

/// The probes at the wakes of all tasks, and how they were found.
fn wake_specs(binary: &Binary<'_>) -> Result<(Vec<ProbeSpec>, String), String> {
    let wakes = wake::find(binary)?;
    let mut found = specs(binary, Hook::WakeByValue, &wakes.by_value);
    found.extend(specs(binary, Hook::WakeByRef, &wakes.by_ref));
    let how = format!("{}, {} sites", wakes.how, found.len());
    Ok((found, how))
}

fn specs(binary: &Binary<'_>, hook: Hook, sites: &[Site]) -> Vec<ProbeSpec> {
    sites.iter().filter_map(|site| spec(binary, hook, site, None, IdPlace::Nowhere)).collect()
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

#[cfg(test)]
mod tests;
