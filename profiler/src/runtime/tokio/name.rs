//! What the types of tasks are called: from symbols where there are any, else from panic locations.

pub(super) mod rust;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::location::Location;
use super::reach::{Reach, References};
use super::vtable::{Layout, Vtable};
use crate::runtime::TaskType;
use crate::target::elf::{Binary, SymbolKind};

/// Calls between a task's vtable and a symbol that names its future, or the code of the future itself.
const DEPTH: usize = 3;

/// What is known of one type before the names are chosen.
#[derive(Clone, Debug, Default)]
struct Evidence {
    /// Type of the future, and others whose code is merged with this one's.
    futures: Vec<String>,
    /// The place in the application's sources that its code comes from.
    location: Option<Location>,
    /// The place in the runtime's worker that its code comes from.
    worker: Option<Location>,
}

/// Names all types, in the order of `vtables`; and how many of them have a name.
pub(super) fn types(
    binary: &Binary<'_>,
    reach: &mut Reach<'_, '_>,
    layout: Layout,
    vtables: &[Vtable],
) -> (Vec<TaskType>, usize) {
    let futures = Futures::of(binary);
    let evidence: Vec<Evidence> = vtables
        .iter()
        .map(|vtable| {
            let names = futures.of_task(binary, reach, layout, vtable);
            // The symbols name it: reading the code of the whole future would only tell its line.
            let location = names.is_empty().then(|| location(binary, reach, vtable)).flatten();
            let worker = (names.is_empty() && location.is_none() && is_blocking(vtable))
                .then(|| worker(binary, reach, vtable))
                .flatten();
            Evidence { futures: names, location, worker }
        })
        .collect();
    let types: Vec<TaskType> = vtables.iter().zip(&evidence).map(|(vtable, e)| describe(vtable, e)).collect();
    let named = evidence.iter().filter(|e| !e.futures.is_empty() || e.location.is_some()).count();
    (distinguish(types), named)
}

/// Ordinary tasks keep one pointer to their scheduler between header and id; blocking ones none, or a hook or two.
fn is_blocking(vtable: &Vtable) -> bool {
    vtable.id.zip(vtable.scheduler).is_some_and(|(id, scheduler)| id != scheduler + 8)
}

fn describe(vtable: &Vtable, evidence: &Evidence) -> TaskType {
    let by_layout = is_blocking(vtable);
    let Some((future, others)) = evidence.futures.split_first() else {
        let name = match evidence.location.as_ref().or(evidence.worker.as_ref()) {
            Some(location) => location.short(),
            None => format!("task@{:x}", vtable.address),
        };
        let internal = evidence.worker.is_some();
        return TaskType {
            name,
            full_name: None,
            aliases: Vec::new(),
            blocking: by_layout,
            internal,
            spawn_sites: Vec::new(),
        };
    };
    let (body, blocking) = rust::unwrap_blocking(future);
    TaskType {
        name: rust::short(body, rust::SEGMENTS),
        full_name: Some(future.clone()),
        aliases: others.iter().map(|other| rust::short(rust::unwrap_blocking(other).0, rust::SEGMENTS)).collect(),
        blocking: blocking || by_layout,
        internal: rust::is_internal(body),
        spawn_sites: Vec::new(),
    }
}

/// Lengthens the short names that different types share, as far as that tells them apart.
fn distinguish(mut types: Vec<TaskType>) -> Vec<TaskType> {
    for segments in [rust::SEGMENTS + 1, rust::SEGMENTS + 2, usize::MAX] {
        let mut owners: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for task in &types {
            if let Some(full) = &task.full_name {
                owners.entry(&task.name).or_default().insert(full);
            }
        }
        let shared: BTreeSet<String> =
            owners.into_iter().filter(|(_, full)| full.len() > 1).map(|(name, _)| name.to_owned()).collect();
        if shared.is_empty() {
            break;
        }
        for task in types.iter_mut().filter(|task| shared.contains(&task.name)) {
            if let Some(full) = &task.full_name {
                task.name = rust::short(rust::unwrap_blocking(full).0, segments);
            }
        }
    }
    types
}

/// Symbols that name the future of a task, by address.
struct Futures<'b, 'data> {
    /// Mangled names. Demangled only when a task leads there.
    symbols: HashMap<u64, Vec<&'data str>>,
    binary: &'b Binary<'data>,
}

impl<'b, 'data> Futures<'b, 'data> {
    fn of(binary: &'b Binary<'data>) -> Self {
        let mut symbols: HashMap<u64, Vec<&'data str>> = HashMap::new();
        for symbol in binary.symbols.iter().filter(|s| s.kind == SymbolKind::Function && rust::may_name(s.name)) {
            symbols.entry(symbol.address).or_default().push(symbol.name);
        }
        Futures { symbols, binary }
    }

    /// The future of a task: the name that most of its functions lead to, then the others.
    fn of_task(&self, binary: &Binary<'_>, reach: &mut Reach<'_, '_>, layout: Layout, vtable: &Vtable) -> Vec<String> {
        debug_assert!(std::ptr::eq(self.binary.data, binary.data));
        if self.symbols.is_empty() {
            return Vec::new();
        }
        let mut votes: BTreeMap<String, f64> = BTreeMap::new();
        // dealloc, poll, shutdown, drop_join_handle: those that are specific to the future.
        let drops = if layout.id_in_vtable.is_some() { [2, 0, layout.shutdown_slot, 4] } else { [1, 0, 7, 3] };
        for slot in drops {
            let Some(function) = vtable.function(binary, slot) else { continue };
            let mut names: BTreeSet<String> = BTreeSet::new();
            reach.walk([function], DEPTH, |address, _: &References| {
                let here = self.symbols.get(&address).into_iter().flatten();
                names.extend(here.filter_map(|name| rust::future(name)));
                !names.is_empty()
            });
            let share = 1.0 / names.len().max(1) as f64;
            names.into_iter().for_each(|name| *votes.entry(name).or_default() += share);
        }
        let most = votes.values().copied().fold(0.0, f64::max);
        let mut names: Vec<(String, f64)> = votes.into_iter().collect();
        names.sort_by(|a, b| b.1.total_cmp(&a.1));
        // What only some functions lead to belongs to another future that this one drops.
        names.into_iter().filter(|&(_, votes)| votes >= most - 1e-9).map(|(name, _)| name).collect()
    }
}

/// The first line of the file of the application's that the code of the task names nearest to its poll.
fn location(binary: &Binary<'_>, reach: &mut Reach<'_, '_>, vtable: &Vtable) -> Option<Location> {
    let mut found: Vec<Location> = Vec::new();
    reach.walk(vtable.poll(binary), DEPTH, |_, references| {
        let own = references.data.iter().filter_map(|&at| Location::read(binary, at)).filter(Location::is_own);
        found.extend(own);
        !found.is_empty()
    });
    let mut files: BTreeMap<&str, usize> = BTreeMap::new();
    found.iter().for_each(|location| *files.entry(&location.file).or_default() += 1);
    let (&most, _) = files.iter().max_by_key(|&(_, &count)| count)?;
    found.iter().filter(|location| location.file == most).min().cloned()
}

/// What the path of the source of the runtime's worker ends in.
const WORKER: &str = "/src/runtime/scheduler/multi_thread/worker.rs";

/// The first line of the runtime's worker that the code of a blocking task names: a worker runs in such a task, and no
/// task of the application calls it.
fn worker(binary: &Binary<'_>, reach: &mut Reach<'_, '_>, vtable: &Vtable) -> Option<Location> {
    let mut found: Vec<Location> = Vec::new();
    reach.walk(vtable.poll(binary), DEPTH, |_, references| {
        let locations = references.data.iter().filter_map(|&at| Location::read(binary, at));
        found.extend(locations.filter(|location| location.file.ends_with(WORKER)));
        !found.is_empty()
    });
    found.into_iter().min()
}
