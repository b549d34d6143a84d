//! The tree as people see it.

use super::*;
use crate::model::snapshot::{Edge, EdgeParent, TaskTypeSnapshot, TasksSnapshot};
use crate::status::TargetStatus;

fn kind(name: &str, spawned: u64, alive: u64, sites: &[(&str, u64)]) -> TaskTypeSnapshot {
    let site = |&(name, sampled): &(&str, u64)| SpawnSiteSnapshot {
        name: name.into(),
        place: name.into(),
        exact: true,
        sampled,
    };
    TaskTypeSnapshot {
        name: name.into(),
        full_name: None,
        aliases: Vec::new(),
        blocking: false,
        internal: name == "worker",
        spawned,
        completed: [spawned - alive, 0, 0, 0],
        unseen_spawns: 0,
        alive,
        lifetime: None,
        last_spawn_ns: None,
        spawn_sites: sites.iter().map(site).collect(),
        ..TaskTypeSnapshot::default()
    }
}

fn edge(parent: EdgeParent, child: usize, spawns: u64) -> Edge {
    Edge { parent, child, spawns }
}

fn snapshot(tasks: Option<TasksSnapshot>) -> Snapshot {
    let target = TargetSnapshot {
        pid: 42,
        process: "ser\x1bver".into(),
        runtime: "tokio",
        runtime_version: Some("1.47.1".into()),
        running: true,
        status: TargetStatus::default(),
        sched: None,
        listeners: Vec::new(),
        tasks,
        threads: None,
        processes: None,
        ..TargetSnapshot::default()
    };
    Snapshot { targets: vec![target], ..Snapshot::default() }
}

fn server() -> Snapshot {
    let types = vec![
        kind("accept_loop", 1, 1, &[("src/main.rs:9", 1)]),
        kind("connection", 100, 3, &[("src/http.rs:57", 0)]),
        kind("recursive", 12, 0, &[("src/nested.rs:69", 12)]),
        kind("part", 40, 0, &[("src/http.rs:93", 6), ("src/http.rs:99", 2)]),
        kind("worker", 2, 2, &[]),
        kind("older", 0, 0, &[]),
    ];
    let edges = vec![
        edge(EdgeParent::None, 0, 1),
        edge(EdgeParent::Type(0), 1, 98),
        edge(EdgeParent::Unknown, 1, 2),
        edge(EdgeParent::None, 2, 3),
        edge(EdgeParent::Type(2), 2, 9),
        edge(EdgeParent::Type(1), 3, 40),
        edge(EdgeParent::None, 4, 2),
    ];
    snapshot(Some(TasksSnapshot { types, edges, ..TasksSnapshot::default() }))
}

/// Check that parents stand above their children, and each type's figures once.
#[test]
fn a_tree_reads_as_a_table() {
    let expected = "\
server (pid 42, tokio 1.47.1)
  spawned by / task  spawned  alive  busy  CPU  slowest poll  spawned at
  (no task)                4
  ├─ recursive             3      0     -    -             -  src/nested.rs:69
  │  └─ ↻ recursive        9
  └─ accept_loop           1      1     -    -             -  src/main.rs:9
     └─ connection        98      3     -    -             -  src/http.rs:57
        └─ part           40      0     -    -             -  src/http.rs:93 (~75%), src/http.rs:99 (~25%)
  (unknown)                2
  ├─ ↑ connection          2
  └─ older                 0      0     -    -             -  -
  ↻ spawns itself, directly or through others: its figures stand further up
  ↑ also spawned elsewhere: its figures and what it spawns stand there
  (~%) share in a sample of the spawns
";
    assert_eq!(render(&server()), expected);
}

/// Check that programs are told the same.
#[test]
fn a_tree_is_a_document() {
    let document = document(&server());
    let roots = &document["targets"][0]["roots"];
    assert_eq!(roots[0]["parent"], "none");
    assert_eq!(roots[0]["children"][0]["children"][0]["recursive"], true);
    let part = &roots[0]["children"][1]["children"][0]["children"][0];
    assert_eq!((&part["task"], &part["spawned"], &part["busy_ns"]), (&json!("part"), &json!(40), &Value::Null));
    assert_eq!(part["spawn_sites"][0], json!({ "place": "src/http.rs:93", "sampled": 6 }));
}

/// Check that we say why there is no tree.
#[test]
fn a_target_without_tasks_says_so() {
    assert!(render(&snapshot(None)).contains("tasks are not measured"));
    assert!(render(&snapshot(Some(TasksSnapshot::default()))).contains("no task was spawned"));
    assert_eq!(document(&snapshot(None))["targets"][0]["roots"], Value::Null);
}

/// Check that types that only each other spawned are shown, and once.
#[test]
fn a_circle_without_a_beginning_is_shown() {
    let types = vec![kind("a", 5, 0, &[]), kind("b", 4, 0, &[])];
    let edges = vec![edge(EdgeParent::Type(0), 1, 4), edge(EdgeParent::Type(1), 0, 5)];
    let text = render(&snapshot(Some(TasksSnapshot { types, edges, ..TasksSnapshot::default() })));
    let names: Vec<&str> = text.lines().skip(2).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(names[..3], ["0", "a", "b"], "{text}");
    assert!(text.contains("↻ a"), "{text}");
}
