use std::collections::HashMap;

use profiler_common::map::Argument;

use super::*;
use crate::runtime::{Hook, IdPlace, ProbeSpec, TaskType};

/// Where the image was loaded.
const BIAS: u64 = 0x5555_5555_4000;
/// The address of the only vtable.
const VTABLE: u64 = 0x1000;
/// The key of a type that was met.
const MET: u64 = 0x77;

fn plan() -> Plan {
    let task = TaskType {
        name: "a".to_owned(),
        full_name: None,
        aliases: Vec::new(),
        blocking: false,
        internal: false,
        spawn_sites: Vec::new(),
    };
    let probe = ProbeSpec {
        hook: Hook::Spawn,
        file_offset: 0,
        argument: Argument::Rax,
        displacement: 0,
        kind: Some(TypeId(0)),
        id: IdPlace::Stack(40),
        emulated: true,
    };
    Plan {
        probes: vec![probe],
        types: vec![task],
        type_by_vtable: HashMap::from([(VTABLE, TypeId(0))]),
        ..Plan::without_probes("any", None, &[], "")
    }
}

fn check(kind: u16, flags: u16, vtable: u64, parent: u64, expected: Result<TaskEvent, Untranslated>) {
    let plan = plan();
    let header = Header { time_ns: 1, pid: 2, tid: 3, kind, flags, site: 0 };
    let record = TaskRecord { header, task: 0x7000, vtable, id: 9, parent };
    let met = FxHashMap::from_iter([(MET, TypeId(7))]);
    let instance = Instance { plan: &plan, load_bias: BIAS, root: 2, met: &met };
    assert_eq!(instance.translate(&record), expected);
}

fn spawned(parent: Parent) -> Result<TaskEvent, Untranslated> {
    Ok(TaskEvent::Spawned { task: TaskRef { address: 0x7000, id: Some(9) }, kind: TypeId(0), parent })
}

fn completed(outcome: Outcome) -> Result<TaskEvent, Untranslated> {
    Ok(TaskEvent::Completed { task: TaskRef { address: 0x7000, id: Some(9) }, kind: TypeId(0), outcome })
}

/// Check that the type comes from the vtable or, without one, from the site; and that strangers are refused.
#[test]
fn types_are_told() {
    check(kind::TASK_SPAWNED, 0, BIAS + VTABLE, 0, spawned(Parent::Unknown));
    check(kind::TASK_SPAWNED, 0, 0, 0, spawned(Parent::Unknown));
    check(kind::TASK_SPAWNED, 0, BIAS + VTABLE + 8, 0, Err(Untranslated::ForeignVtable));
    check(kind::TASK_SPAWNED, 0, 8, 0, Err(Untranslated::ForeignVtable));
    check(kind::PROCESS_EXITED, 0, 0, 0, Err(Untranslated::ForeignKind));
    let task = TaskRef { address: 0x7000, id: Some(9) };
    check(kind::TASK_FOUND, 0, MET, 0, Ok(TaskEvent::Found { task, kind: TypeId(7) }));
}

/// Check that a parent is unknown, none, an id or an address.
#[test]
fn parents_are_told() {
    check(kind::TASK_SPAWNED, flag::PARENT_KNOWN, 0, 0, spawned(Parent::None));
    check(kind::TASK_SPAWNED, flag::PARENT_KNOWN, 0, 4, spawned(Parent::Id(4)));
    check(kind::TASK_SPAWNED, flag::PARENT_KNOWN | flag::PARENT_IS_ADDRESS, 0, 4, spawned(Parent::Address(4)));
    check(kind::TASK_SPAWNED, 0, 0, 4, spawned(Parent::Unknown));
}

/// Check that the stored result decides, and the request to cancel only where it cannot be read.
#[test]
fn outcomes_are_told() {
    let check = |flags, outcome| check(kind::TASK_COMPLETED, flags, BIAS + VTABLE, 0, completed(outcome));
    check(0, Outcome::Unknown);
    check(flag::CANCEL_REQUESTED, Outcome::Cancelled);
    check(flag::OUTCOME_KNOWN, Outcome::Completed);
    check(flag::OUTCOME_KNOWN | flag::CANCEL_REQUESTED, Outcome::Completed);
    check(flag::OUTCOME_KNOWN | flag::CANCEL_REQUESTED | flag::CANCELLED, Outcome::Cancelled);
    check(flag::OUTCOME_KNOWN | flag::PANICKED, Outcome::Panicked);
}

/// Check that tasks of a forked child are not its parent's that live at the same addresses, and are told alike every time.
#[test]
fn children_have_tasks_of_their_own() {
    let (plan, met) = (plan(), FxHashMap::default());
    let instance = Instance { plan: &plan, load_bias: BIAS, root: 2, met: &met };
    let address = |pid, kind| {
        let flags = flag::PARENT_KNOWN | flag::PARENT_IS_ADDRESS;
        let header = Header { time_ns: 1, pid, tid: 3, kind, flags, site: 0 };
        match instance.translate(&TaskRecord { header, task: 0x7000, vtable: 0, id: 0, parent: 0x7000 }) {
            Ok(TaskEvent::Spawned { task, parent, .. }) => {
                assert_eq!(parent, Parent::Address(task.address));
                task.address
            }
            Ok(TaskEvent::Completed { task, .. }) => task.address,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(address(2, kind::TASK_SPAWNED), 0x7000);
    let children: Vec<u64> = (3..1000).map(|pid| address(pid, kind::TASK_SPAWNED)).collect();
    assert!(!children.contains(&0x7000));
    assert_eq!(children.iter().collect::<std::collections::HashSet<_>>().len(), children.len());
    assert_eq!(address(7, kind::TASK_COMPLETED), children[4]);
}
