//! Who spawned whom, as a tree of task types for people and as JSON. Never which task, never a histogram.

mod node;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use serde_json::{Value, json};

use self::node::{Figures, Node, Repeat, Root, forest};
use super::text::{duration, widths};
use crate::model::snapshot::{Snapshot, SpawnSiteSnapshot, TargetSnapshot};

/// Longest name, in characters: the end of a path says more than its beginning.
const NAME: usize = 60;
/// Sites of one type that are shown.
const SITES: usize = 3;
/// What stands where nothing was measured.
const ABSENT: &str = "-";
/// What stands in front of a type that is shown elsewhere.
const RECURSIVE: &str = "↻ ";
const ABOVE: &str = "↑ ";

/// The trees of all targets, for a terminal or a page of text.
pub fn render(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    for (index, target) in snapshot.targets.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        heading(&mut out, target);
        let Some(tasks) = &target.tasks else {
            let why = target.status.row("tasks").map(|row| row.detail.as_str());
            let _ = writeln!(out, "  tasks are not measured: {}", why.unwrap_or("no probe is attached"));
            continue;
        };
        let roots = forest(tasks);
        let mut rows = vec![HEADER.map(str::to_owned)];
        for root in &roots {
            rows.push(row(root.label().to_owned(), root.spawned.to_string(), None));
            branches(&mut rows, &root.children, "");
        }
        if roots.is_empty() {
            out.push_str("  no task was spawned\n");
        } else {
            table(&mut out, &rows);
            legend(&mut out, &rows);
        }
    }
    out
}

/// The same for programs.
pub fn document(snapshot: &Snapshot) -> Value {
    let target = |target: &TargetSnapshot| {
        json!({
            "pid": target.pid,
            "process": target.process,
            "runtime": target.runtime,
            "runtime_version": target.runtime_version,
            "roots": target.tasks.as_ref().map(|tasks| forest(tasks).iter().map(root).collect::<Vec<_>>()),
        })
    };
    json!({ "targets": snapshot.targets.iter().map(target).collect::<Vec<_>>() })
}

const HEADER: [&str; 7] = ["spawned by / task", "spawned", "alive", "busy", "CPU", "slowest poll", "spawned at"];

fn heading(out: &mut String, target: &TargetSnapshot) {
    let version = target.runtime_version.as_deref().map_or(String::new(), |version| format!(" {version}"));
    let state = if target.running { "" } else { ", ended" };
    let process: String = target.process.chars().filter(|c| !c.is_control()).collect();
    let _ = writeln!(out, "{process} (pid {}, {}{version}{state})", target.pid, target.runtime);
}

fn branches(rows: &mut Vec<[String; 7]>, nodes: &[Node<'_>], indent: &str) {
    for (index, node) in nodes.iter().enumerate() {
        let last = index + 1 == nodes.len();
        let mark = match node.repeat {
            Repeat::Not => "",
            Repeat::Recursion => RECURSIVE,
            Repeat::Above => ABOVE,
        };
        let name = format!("{indent}{}{mark}{}", if last { "└─ " } else { "├─ " }, shortened(node.name));
        let figures = (node.repeat == Repeat::Not).then_some(&node.figures);
        rows.push(row(name, node.spawned.to_string(), figures));
        branches(rows, &node.children, &format!("{indent}{}", if last { "   " } else { "│  " }));
    }
}

/// One row; without figures of its own where these stand elsewhere.
fn row(name: String, spawned: String, figures: Option<&Figures<'_>>) -> [String; 7] {
    let Some(figures) = figures else {
        return [name, spawned, String::new(), String::new(), String::new(), String::new(), String::new()];
    };
    let time = |ns: Option<u64>| ns.map_or_else(|| ABSENT.to_owned(), duration);
    [
        name,
        spawned,
        figures.alive.to_string(),
        time(figures.busy_ns),
        time(figures.cpu_ns),
        time(figures.slowest_poll_ns),
        sites(&figures.sites),
    ]
}

/// The sites with their shares, where there are several and their spawns were sampled.
fn sites(sites: &[SpawnSiteSnapshot]) -> String {
    let sampled: u64 = sites.iter().map(|site| site.sampled).sum();
    let met: Vec<_> = sites.iter().filter(|site| sampled == 0 || site.sampled > 0).collect();
    let share = |site: &SpawnSiteSnapshot| match (met.len(), sampled) {
        (1, _) | (_, 0) => site.name.clone(),
        _ => format!("{} (~{:.0}%)", site.name, site.sampled as f64 * 100.0 / sampled as f64),
    };
    let mut text = met.iter().take(SITES).map(|site| share(site)).collect::<Vec<_>>().join(", ");
    match met.len().checked_sub(SITES) {
        Some(more) if more > 0 => text += &format!(", and {more} more"),
        _ if met.is_empty() => text.push_str(ABSENT),
        _ => {}
    }
    text
}

/// Names and sites to the left, figures to the right, each as wide as its widest cell.
fn table(out: &mut String, rows: &[[String; 7]]) {
    let widths = widths(rows);
    for [name, figures @ .., sites] in rows {
        let mut line = format!("  {name:<width$}", width = widths[0]);
        for (cell, width) in figures.iter().zip(&widths[1..]) {
            let _ = write!(line, "  {cell:>width$}");
        }
        let _ = write!(line, "  {sites}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// What the marks mean, where they are used.
fn legend(out: &mut String, rows: &[[String; 7]]) {
    let used = |mark: &str| rows.iter().any(|row| row[0].contains(mark));
    if used(RECURSIVE) {
        let _ = writeln!(out, "  {RECURSIVE}spawns itself, directly or through others: its figures stand further up");
    }
    if used(ABOVE) {
        let _ = writeln!(out, "  {ABOVE}also spawned elsewhere: its figures and what it spawns stand there");
    }
    if rows.iter().any(|row| row[6].contains("(~")) {
        out.push_str("  (~%) share in a sample of the spawns\n");
    }
}

fn shortened(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME {
        return name.to_owned();
    }
    std::iter::once('…').chain(name.chars().skip(length - NAME + 1)).collect()
}

fn root(root: &Root<'_>) -> Value {
    json!({
        "parent": root.kind(),
        "spawned": root.spawned,
        "children": root.children.iter().map(node).collect::<Vec<_>>(),
    })
}

/// `spawned` is by this parent; all else is of the type, and `null` where it was not measured.
fn node(node: &Node<'_>) -> Value {
    let figures = &node.figures;
    let sites = figures.sites.iter().map(|site| json!({ "place": site.place, "sampled": site.sampled }));
    json!({
        "task": node.name,
        "spawned": node.spawned,
        "spawned_in_all": figures.spawned,
        "alive": figures.alive,
        "busy_ns": figures.busy_ns,
        "cpu_ns": figures.cpu_ns,
        "slowest_poll_ns": figures.slowest_poll_ns,
        "spawn_sites": sites.collect::<Vec<_>>(),
        "recursive": node.repeat == Repeat::Recursion,
        "elsewhere": node.repeat == Repeat::Above,
        "children": node.children.iter().map(self::node).collect::<Vec<_>>(),
    })
}
