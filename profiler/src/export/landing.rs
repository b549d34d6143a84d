//! The landing page, for people who open the endpoint in a browser. Never a script, never a resource from elsewhere.

use std::fmt::Write as _;

use crate::model::snapshot::Snapshot;
use crate::status::ProbeState;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ddd}\
td.n,th.n{text-align:right}a{color:#0b57d0}nav a{margin-right:1rem}.broken{color:#b3261e}";

/// The page. `metrics` is the path of the metrics.
pub fn page(snapshot: &Snapshot, metrics: &str) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>profiler</title><style>{STYLE}</style></head>\
         <body><h1>profiler {}</h1><nav><a href=\"{metrics}\">Metrics</a><a href=\"/status\">Status</a>\
         <a href=\"/tree\">Tree</a>\
         <a href=\"/healthz\">Health</a><a href=\"/readyz\">Readiness</a></nav>",
        env!("CARGO_PKG_VERSION"),
        metrics = escaped(metrics)
    );
    if let Some(reason) = &snapshot.profiler.not_ready {
        let _ = write!(out, "<p class=\"broken\">Not ready: {}</p>", escaped(reason));
    }
    out.push_str("<h2>Targets</h2>");
    if snapshot.targets.is_empty() {
        out.push_str("<p>None yet.</p></body></html>\n");
        return out;
    }
    out.push_str(
        "<table><tr><th class=\"n\">pid</th><th>process</th><th>runtime</th><th>state</th>\
         <th class=\"n\">tasks alive</th><th class=\"n\">listeners</th><th>probes</th></tr>",
    );
    for target in &snapshot.targets {
        let alive = target.tasks.as_ref().map(|tasks| tasks.types.iter().map(|kind| kind.alive).sum::<u64>());
        let probes = target.status.probes.iter().map(|row| {
            let class = if row.state == ProbeState::Broken { " class=\"broken\"" } else { "" };
            format!(
                "<span title=\"{}\"{class}>{}: {}</span>",
                escaped(&row.detail),
                escaped(&row.probe),
                row.state.label()
            )
        });
        let _ = write!(
            out,
            "<tr><td class=\"n\">{}</td><td>{}</td><td>{} {}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td>{}</td></tr>",
            target.pid,
            escaped(&target.process),
            target.runtime,
            escaped(target.runtime_version.as_deref().unwrap_or_default()),
            if target.running { "running" } else { "ended" },
            alive.map_or_else(|| "–".to_owned(), |alive| alive.to_string()),
            target.listeners.len(),
            probes.collect::<Vec<_>>().join("<br>")
        );
    }
    out.push_str("</table></body></html>\n");
    out
}

/// Text as it may stand in HTML: a process chooses its own name.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
