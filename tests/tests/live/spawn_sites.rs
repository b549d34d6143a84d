//! Where tasks are spawned, against the fixture's own sources; and the tree of who spawned whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::{Profiler, launch, run_to_end};
use tests::status::{Status, number};
use tests::table::Table;
use tests::wait;

use crate::tasks::kinds::{Kinds, Twin};

/// What spawns, as it is written in the fixture.
const SPAWNS: [&str; 3] = ["spawn(", "spawn_blocking(", "spawn_local("];
/// Spawned by a method of a handle: it is not told its caller's place in an optimised build.
const BY_HANDLE: [&str; 1] = ["from_thread"];
/// Commands that spawn every kind of the mode `tasks`.
const COMMANDS: [&str; 5] = ["run 10000", "hold 10", "busy 4 10", "storm 1000", "release"];

/// The lines in the fixture's sources that spawn each kind, as `src/hold.rs:34`. Each spawn is written on one line.
fn written(kinds: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    fn read(folder: &Path, path: &str, kinds: &BTreeSet<String>, found: &mut BTreeMap<String, BTreeSet<String>>) {
        for entry in fs::read_dir(folder).expect("the fixture's sources") {
            let entry = entry.expect("the fixture's sources").path();
            let name = format!("{path}/{}", entry.file_name().unwrap_or_default().to_string_lossy());
            if entry.is_dir() {
                read(&entry, &name, kinds, found);
                continue;
            }
            let text = fs::read_to_string(&entry).expect("a source file");
            for (number, line) in text.lines().enumerate() {
                for spawned in SPAWNS.iter().flat_map(|spawn| line.split(spawn).skip(1)) {
                    let kind: String = spawned.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect();
                    if kinds.contains(&kind) {
                        found.entry(kind).or_default().insert(format!("{name}:{}", number + 1));
                    }
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    read(&place::root().join("tests/fixtures/tokio/src"), "src", kinds, &mut found);
    found
}

/// Spawn sites of a kind: those that are told, those of them that were met in copied stacks, and functions or files.
#[derive(Default)]
struct Seen {
    lines: BTreeSet<String>,
    met: BTreeSet<String>,
    functions: BTreeSet<String>,
}

fn seen(status: &Status, pid: u32, kinds: &Kinds) -> BTreeMap<String, Seen> {
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    for kind in status.target(pid).kinds() {
        let entry = seen.entry(kinds.group_of(kind.name())).or_default();
        for site in kind.0["spawn_sites"].as_array().into_iter().flatten() {
            let name = site["site"].as_str().expect("a site has a name").to_owned();
            let sites = if site["exact"] == true { &mut entry.lines } else { &mut entry.functions };
            sites.insert(name.clone());
            if number(&site["sampled"]) > 0 {
                entry.met.insert(name);
            }
        }
    }
    seen
}

/// Checks a build: every kind has the sites that its sources have, and no other.
fn check(version: &str, profile: &str) {
    place::require_root();
    let mut table = Table::new(format!("spawn sites of {version} {profile}"));
    let mut fixture = Fixture::tokio(version, profile, &["tasks"]);
    let twin = Twin::of_build(version, profile);
    let profiler = Profiler::attach(fixture.pid());
    let mut truth = Value::Null;
    for command in COMMANDS {
        truth = fixture.ask(command);
    }
    let names: BTreeSet<String> = truth["spawned"].as_object().expect("counts").keys().cloned().collect();
    let written = written(&names);
    let by_group = |kinds: &Kinds| {
        let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for kind in names.iter().filter(|kind| !BY_HANDLE.contains(&kind.as_str())) {
            groups
                .entry(kinds.group_of_kind(kind))
                .or_default()
                .extend(written.get(kind).into_iter().flatten().cloned());
        }
        groups
    };
    // Stacks are looked at a little later, and new paths once in a second.
    let status = wait::until_or_last(
        || profiler.status(),
        |status| {
            let kinds = Kinds::of(&truth, status.target(fixture.pid()), &twin);
            let seen = seen(status, fixture.pid(), &kinds);
            by_group(&kinds)
                .iter()
                .filter(|(_, sites)| sites.len() > 1)
                .all(|(group, _)| seen.get(group).is_some_and(|seen| !seen.met.is_empty() || seen.lines.len() == 1))
        },
    );
    let kinds = Kinds::of(&truth, status.target(fixture.pid()), &twin);
    let seen = seen(&status, fixture.pid(), &kinds);
    let list = |sites: &BTreeSet<String>| sites.iter().cloned().collect::<Vec<_>>().join(" ");
    for (group, sites) in by_group(&kinds) {
        let Some(seen) = seen.get(&group) else {
            table.holds(format!("{group} is seen"), true, false, false);
            continue;
        };
        table.equal(group.clone(), list(&sites), list(&seen.lines));
        table.equal(format!("{group}: in stacks alone"), String::new(), list(&(&seen.met - &sites)));
        // Types of one kind that have one site each need no stacks.
        let several = sites.len() > 1 && !["generic"].contains(&group.as_str());
        table.holds(format!("{group}: met in stacks"), several, !seen.met.is_empty(), several != seen.met.is_empty());
    }
    for kind in BY_HANDLE {
        if let Some(seen) = seen.get(&kinds.group_of_kind(kind)) {
            table.holds(format!("{kind}: nothing is guessed"), "", list(&seen.lines), seen.lines.is_empty());
        }
    }
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}

#[test]
fn sites_of_latest_release() {
    check("latest", "release");
}

#[test]
fn sites_of_latest_fat() {
    check("latest", "fat");
}

#[test]
fn sites_of_latest_fat_stripped() {
    check("latest", "fat-stripped");
}

#[test]
fn sites_of_1_28_fat_stripped() {
    check("1.28", "fat-stripped");
}

/// The spawns in a tree, as `parent>child`.
fn edges(parent: &str, children: &Value, found: &mut BTreeMap<String, u64>, recursive: &mut BTreeSet<String>) {
    for child in children.as_array().into_iter().flatten() {
        let name = child["task"].as_str().expect("a task has a name");
        let kind = name.split('<').next().and_then(|path| path.rsplit("::").next()).unwrap_or(name);
        *found.entry(format!("{parent}>{kind}")).or_default() += number(&child["spawned"]);
        if child["recursive"] == true {
            recursive.insert(kind.to_owned());
        }
        edges(kind, &child["children"], found, recursive);
    }
}

/// Check that the tree has the fixture's own parents and counts, whatever its form.
#[test]
fn the_tree_is_who_spawned_whom() {
    place::require_root();
    let mut table = Table::new("tree of latest release");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let pid = fixture.pid().to_string();
    let mut printed = Vec::new();
    let mut truths = Vec::new();
    for form in [&["--json"][..], &[]] {
        let profiler = launch(&[&["tree", "--budget", "off", "--pid", &pid, "--duration", "10m"], form].concat());
        let attached = profiler.error_line(|line| line.contains("attached in"));
        assert!(attached.is_some(), "{:?}", profiler.errors());
        truths.push(fixture.ask("run 2000"));
        profiler.signal(libc::SIGINT);
        let ended = profiler.wait();
        table.equal(format!("exit code of tree {form:?}"), 0, ended.code().unwrap_or(-1));
        printed.push(ended.stdout.join("\n"));
    }
    let document: Value = serde_json::from_str(&printed[0]).expect("the tree is JSON");
    let (mut found, mut recursive) = (BTreeMap::new(), BTreeSet::new());
    for root in document["targets"][0]["roots"].as_array().into_iter().flatten() {
        let parent = root["parent"].as_str().expect("a root has a parent");
        edges(parent, &root["children"], &mut found, &mut recursive);
    }
    let truth: BTreeMap<String, u64> =
        truths[0]["parents"].as_object().expect("counts").iter().map(|(edge, n)| (edge.clone(), number(n))).collect();
    for edge in truth.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
        let of = |edges: &BTreeMap<String, u64>| edges.get(edge).copied().unwrap_or_default();
        table.equal(edge.clone(), of(&truth), of(&found));
    }
    table.equal("recursive", "recursive".to_owned(), recursive.into_iter().collect::<Vec<_>>().join(" "));
    let text = &printed[1];
    for part in ["spawned by / task", "(no task)", "nested::nested_root", "↻", "src/workload/nested.rs:32"] {
        table.holds(format!("the text has {part}"), true, text.contains(part), text.contains(part));
    }
    table.finish();
}

/// Check that a tree of what cannot be watched is refused like any measurement.
#[test]
fn a_tree_of_nothing_is_refused() {
    place::require_root();
    let ended = run_to_end(&["tree", "--pid", "4194303"]);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stderr.len(), 1, "{ended:?}");
    assert_eq!(run_to_end(&["tree"]).code(), Some(2));
}
