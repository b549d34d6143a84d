//! A recorded stream, from the bytes of the ring to the page of metrics, compared with a golden page.
//! `PROFILER_BLESS=1 cargo test -p tests --test replay` rewrites the golden pages.

use std::path::Path;
use std::sync::Arc;

use profiler::decode::{Record, decode, encode};
use profiler::event::TypeId;
use profiler::metrics::{self, Own};
use profiler::model::snapshot::{Snapshot, TargetSnapshot};
use profiler::model::table::{Limits, Table};
use profiler::model::task::TypeInfo;
use profiler::recording::{Reader, Writer};
use profiler::runtime::{Instance, Lineage, Plan, TaskType};
use profiler::status::{ProbeState, TargetStatus};
use profiler_common::event::{Header, ProcessRecord, TaskRecord, flag, kind};
use profiler_common::map::TaskLayout;
use rustc_hash::FxHashMap;

const PID: u32 = 4242;
const TYPES: [&str; 4] = ["main::accept_loop", "main::connection", "main::query", "tokio::worker"];
/// Address of the first type's vtable; the others follow.
const VTABLES: u64 = 0x5555_0000;

/// Where the server's image was loaded.
const LOAD_BIAS: u64 = 0x4000_0000;

/// What the adapter would have found in the server's binary.
fn plan() -> Plan {
    let vtable = |number: usize| VTABLES - LOAD_BIAS + 80 * number as u64;
    Plan {
        runtime: "tokio",
        version: None,
        probes: Vec::new(),
        signals: Vec::new(),
        layout: TaskLayout::default(),
        lineage: Lineage::ThreadLocal,
        outcome: true,
        types: TYPES
            .iter()
            .map(|name| TaskType {
                name: (*name).into(),
                full_name: None,
                aliases: Vec::new(),
                blocking: false,
                internal: name.starts_with("tokio"),
                spawn_sites: Vec::new(),
            })
            .collect(),
        type_by_vtable: (0..TYPES.len()).map(|number| (vtable(number), TypeId(number as u32))).collect(),
        polls: Vec::new(),
    }
}

/// A server of its own kind, deterministic: an accept loop spawns connections, which spawn queries; addresses are
/// reused, events overtake each other, some spawns and ends are missing, and one record is damaged.
fn stream() -> Vec<u8> {
    let mut seed: u64 = 1;
    let mut random = move |below: u64| {
        // The constants of Knuth's MMIX.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let record = |time_ns, kind, flags, kind_number: u64, address, id, parent| {
        let header = Header { time_ns, pid: PID, tid: PID + 1, kind, flags, site: 0 };
        let vtable = VTABLES + kind_number * 80;
        (time_ns, Record::Task(TaskRecord { header, task: address, vtable, id, parent }))
    };
    let known = flag::PARENT_KNOWN;
    let mut records = vec![
        record(1_000, kind::TASK_SPAWNED, known, 3, 0x1000, 1, 0),
        record(2_000, kind::TASK_SPAWNED, known, 0, 0x1100, 2, 1),
    ];
    let mut id = 2;
    for connection in 0..200u64 {
        let begin = 10_000 + connection * 3_000_000;
        id += 1;
        let (me, address) = (id, 0x2000 + connection % 8 * 0x100);
        let finish = begin + 1_000_000 + random(1_500_000);
        let outcome = match random(20) {
            0 => flag::PANICKED,
            1 => flag::CANCELLED,
            2 => 0,
            _ => flag::OUTCOME_KNOWN,
        };
        if random(50) > 0 {
            records.push(record(begin, kind::TASK_SPAWNED, known, 1, address, me, 2));
        }
        for query in 0..random(4) {
            id += 1;
            let at = begin + 10_000 + query * 100_000;
            let address = 0x8000 + query * 0x80;
            records.push(record(at, kind::TASK_SPAWNED, known, 2, address, id, me));
            if random(30) > 0 {
                records.push(record(at + 50_000, kind::TASK_COMPLETED, flag::OUTCOME_KNOWN, 2, address, id, 0));
            }
        }
        records.push(record(finish, kind::TASK_COMPLETED, outcome, 1, address, me, 0));
    }
    let header = Header { time_ns: 700_000_000, pid: PID, tid: PID, kind: kind::PROCESS_FORKED, flags: 0, site: 0 };
    records.push((header.time_ns, Record::Process(ProcessRecord { header, other: PID + 9, reserved: 0 })));

    // Up to 5 ms late.
    let mut late: Vec<_> = records.into_iter().map(|(time_ns, r)| (time_ns + random(5_000_000), r)).collect();
    late.sort_by_key(|(arrival, _)| *arrival);
    let mut writer = Writer::new(Vec::new()).expect("memory");
    for (number, (_, record)) in late.iter().enumerate() {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        if number == 100 {
            writer.write(&bytes[..30]).expect("memory");
        }
        writer.write(&bytes).expect("memory");
    }
    writer.finish().expect("memory")
}

fn count(list: &mut Vec<(&'static str, u64)>, label: &'static str) {
    match list.iter_mut().find(|(known, _)| *known == label) {
        Some((_, n)) => *n += 1,
        None => list.push((label, 1)),
    }
}

/// Replays `stream` as the main loop would, and returns the page.
fn replay(stream: &[u8], plan: &Plan) -> String {
    let met = FxHashMap::default();
    let instance = Instance { plan, load_bias: LOAD_BIAS, root: PID, met: &met };
    let mut snapshot = Snapshot { epoch_offset_seconds: 1_700_000_000.0, ..Snapshot::default() };
    let mut table = Table::new(Limits::default());
    let info = |name: &str| TypeInfo { name: name.into(), internal: name.starts_with("tokio"), ..TypeInfo::default() };
    let target = table.add_target(TYPES.iter().map(|name| info(name)).collect());
    let mut reader = Reader::new(stream).expect("a recorded stream");
    while let Some(bytes) = reader.read().expect("a whole record") {
        let Ok(record) = decode(bytes) else {
            count(&mut snapshot.profiler.lost, "record_malformed");
            continue;
        };
        count(&mut snapshot.profiler.events, record.label());
        if let Record::Task(task) = record {
            match instance.translate(&task) {
                Ok(event) => table.apply(target, task.header.time_ns, event),
                Err(_) => count(&mut snapshot.profiler.lost, "vtable_foreign"),
            }
        }
    }
    table.finish();
    snapshot.profiler.lost.extend(table.losses().by_reason());
    let mut status = TargetStatus::default();
    for probe in ["task_spawn", "task_complete", "task_outcome"] {
        status.set(probe, ProbeState::Attached, "replayed");
    }
    snapshot.targets.push(TargetSnapshot {
        pid: PID,
        process: "server".into(),
        runtime: "tokio",
        runtime_version: None,
        running: true,
        status,
        sched: None,
        listeners: Vec::new(),
        tasks: table.tasks().remove(&target),
        figures: None,
        threads: None,
        processes: None,
        ..TargetSnapshot::default()
    });
    metrics::page(Arc::new(snapshot), Own::default()).expect("a page")
}

#[track_caller]
fn check(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("replay").join(name);
    // The version changes with every release, and is not what this is about.
    let page = page.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    if std::env::var_os("PROFILER_BLESS").is_some() {
        std::fs::write(&path, &page).expect("to write the golden page");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = golden.lines().zip(page.lines()).find(|(golden, page)| golden != page);
    assert!(
        golden == page,
        "the page differs from replay/{name}, first at {differs:?}: if that is meant, run\n\
         PROFILER_BLESS=1 cargo test -p tests --test replay"
    );
}

#[test]
fn a_recorded_stream_gives_the_golden_page() {
    check("server.prom", &replay(&stream(), &plan()));
}
