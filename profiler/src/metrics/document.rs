//! `docs/metrics.md`, made of the table. Never text that the table could hold.

use std::fmt::Write as _;

use super::labels::{BOUND, OTHER};
use super::otel;
use super::table::{Area, GROUP_LABELS, METRICS, PREFIX, TARGET_LABELS};

/// The whole document.
pub fn document() -> String {
    let mut out = String::new();
    let names = |labels: &[&str]| labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
    let (target, group) = (names(&TARGET_LABELS), names(&GROUP_LABELS));
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<!-- Generated from profiler/src/metrics/table.rs; a test compares it, and says how to regenerate it. -->\n\
         # Metrics\n\n\
         All names begin with `{PREFIX}`, but for the standard `process_` ones. A metric of a target has the labels\n\
         {target} in front of its own; with `profiler agent` {group}, and\n\
         the processes that have these in common are summed. Units are base units.\n\n\
         - **Absent is not zero.** What was not measured has no series; `{PREFIX}probe_state` says why.\n\
         - **Histograms share one set of buckets per unit**, so that waits can be compared: durations have powers of two\n\
         \x20 from 2^10 ns (1.024 µs) to 2^36 ns (68.7 s), counts have powers of two from 1 to 65,536. The bounds are exact.\n\
         - **Series are bounded**: a label has at most {BOUND} values per target by default, and the rest is summed in\n\
         \x20 `{OTHER}`. No label holds an id, an address or a port of a client. Series that would share their labels (a\n\
         \x20 process id that is used again, two types of one name) are summed.\n\
         - **A target that has ended** keeps its series for the retention window, with `{PREFIX}target_up` 0, so that a\n\
         \x20 short-lived process is scraped at all. What it counted stays in the sum of its group for as long as one of the\n\
         \x20 group lives, and for that window after it. Where births and ends, or polls, of one of a group are only sampled,\n\
         \x20 or were when it ended, the group's totals are absent: a sum of the others would be none.\n\
         - **`{PREFIX}probe_state` has a series for every state**, 1 for the current one and 0 for the others: an alert on\n\
         \x20 `{PREFIX}probe_state{{state=\"broken\"}} == 1` and one on `{PREFIX}probe_state{{state=\"attached\"}} == 0` both\n\
         \x20 work, and neither depends on a series that vanishes.\n\
         - **By OTLP** a target is a resource, whose attributes have the labels of targets, and `RUNTIME` is its runtime.\n\
         - **An outcome that cannot be told** is `unknown`; zero panics are shown only where a panic would be seen.\n"
    );
    for area in Area::ALL {
        let _ = write!(out, "\n## {}\n\n", area.heading());
        out.push_str("| metric | kind | unit | labels | meaning | source | by OTLP |\n|---|---|---|---|---|---|---|\n");
        for row in METRICS.iter().filter(|row| row.area == area) {
            let labels = match row.labels {
                [] => String::new(),
                labels => {
                    let names = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
                    format!("{names}: {}", row.bound)
                }
            };
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {labels} | {} | {} | `{}` |",
                row.full_name(),
                row.kind.label(),
                row.unit.label(),
                row.help,
                row.source,
                otel::name(row.id, "RUNTIME")
            );
        }
    }
    out
}
