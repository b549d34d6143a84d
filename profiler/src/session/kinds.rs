//! Types of the tasks of one image in one process: those that its build has, and those that are met while it runs. Never how a
//! type is named.

use std::collections::HashMap;
use std::rc::Rc;

use profiler_common::coroutine::{MOST_TYPE_KEYS, UNKNOWN_TYPE};
use profiler_common::event::TaskRecord;
use profiler_common::map::TYPE_SHARDS;
use rustc_hash::FxHashMap;

use super::builds::{Build, type_info};
use crate::event::TypeId;
use crate::model::table::{Table, TargetId};
use crate::model::task::TypeInfo;
use crate::runtime::{Instance, Naming, TaskType};
use crate::target::memory::ProcessMemory;

/// Types that are met in one process and told apart; more are one type, whose name is not known.
const MOST: usize = 1000;
/// From so many on it is provided for those that the kernel half does not tell apart any more.
const MANY: usize = MOST_TYPE_KEYS as usize / TYPE_SHARDS as usize / 2;
/// Keys of types that are remembered.
const MOST_KEYS: usize = 16_384;

/// The types.
pub(super) struct Kinds {
    build: Rc<Build>,
    load_bias: u64,
    /// The process that is watched.
    root: u32,
    naming: Option<Box<dyn Naming>>,
    /// Types by the keys of their records.
    met: FxHashMap<u64, TypeId>,
    by_name: HashMap<String, TypeId>,
    /// Those that were met; their numbers follow the build's.
    infos: Vec<TypeInfo>,
}

impl Kinds {
    pub fn new(build: Rc<Build>, load_bias: u64, root: u32) -> Kinds {
        let naming = build.runtime.naming(&build.plan);
        Kinds { build, load_bias, root, naming, met: FxHashMap::default(), by_name: HashMap::new(), infos: Vec::new() }
    }

    /// What translates records.
    pub fn instance(&self) -> Instance<'_> {
        Instance { plan: &self.build.plan, load_bias: self.load_bias, root: self.root, met: &self.met }
    }

    /// The type with this vtable, or this key.
    pub fn at(&self, vtable: u64) -> Option<TypeId> {
        self.instance().type_at(vtable)
    }

    /// What is known of a type.
    pub fn info(&self, kind: TypeId) -> Option<&TypeInfo> {
        let number = kind.0 as usize;
        let known = self.build.types.len();
        if number < known { self.build.types.get(number) } else { self.infos.get(number - known) }
    }

    /// Takes the record of a type that is met: its name is read from the process at once, while it is there.
    pub fn meet(&mut self, record: &TaskRecord, table: &mut Table, target: TargetId) {
        let Some(naming) = &self.naming else { return };
        // The kernel half may tell of a type again that it has forgotten.
        if self.met.len() >= MOST_KEYS || self.met.contains_key(&record.vtable) {
            return;
        }
        let memory = ProcessMemory { pid: record.header.pid };
        let named = naming
            .name(&memory, record)
            .filter(|kind| self.infos.len() < MOST || self.by_name.contains_key(&kind.name));
        let kind = named.unwrap_or_else(|| naming.unknown());
        if let Some(kind) = self.add(&kind, table, target) {
            self.met.insert(record.vtable, kind);
        }
        if self.met.len() == MANY {
            self.unknown(UNKNOWN_TYPE, table, target);
        }
    }

    /// The type of a task whose type was not told: what could not be read, or came too late.
    pub fn unknown(&mut self, vtable: u64, table: &mut Table, target: TargetId) -> Option<TypeId> {
        let kind = self.naming.as_ref()?.unknown();
        let kind = self.add(&kind, table, target)?;
        if self.met.len() < MOST_KEYS {
            self.met.insert(vtable, kind);
        }
        Some(kind)
    }

    fn add(&mut self, kind: &TaskType, table: &mut Table, target: TargetId) -> Option<TypeId> {
        if let Some(&known) = self.by_name.get(&kind.name) {
            return Some(known);
        }
        let info = type_info(kind);
        let id = table.add_type(target, info.clone())?;
        debug_assert_eq!(id.0 as usize, self.build.types.len() + self.infos.len(), "types are numbered alike");
        self.infos.push(info);
        self.by_name.insert(kind.name.clone(), id);
        Some(id)
    }
}
