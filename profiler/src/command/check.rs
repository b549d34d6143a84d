//! `profiler check`: what this kernel and these privileges permit, and the remedy for what they do not.

use std::fmt::Write as _;

use crate::kernel::KernelError;
use crate::kernel::btf::Btf;
use crate::kernel::capability::{CAPABILITIES, Effective};
use crate::kernel::feature::Features;
use crate::target::process::require_init_pid_namespace;

/// The report, and whether the main job can be done.
pub struct Report {
    /// One line per finding.
    pub text: String,
    /// Whether a process can be attached to.
    pub usable: bool,
}

/// Looks at the host.
///
/// # Errors
/// /proc cannot be read.
pub fn check() -> Result<Report, KernelError> {
    let mut report = Report { text: String::new(), usable: true };
    let effective = Effective::current()?;
    for capability in CAPABILITIES {
        let there = effective.has(capability);
        report.usable &= there || !capability.required;
        let detail = match (there, capability.required) {
            (true, _) => capability.purpose.to_owned(),
            (false, true) => format!("needed to {}: run as root, or grant it", capability.purpose),
            (false, false) => format!("missing: cannot {}", capability.purpose),
        };
        report.row(capability.name, there, &detail);
    }
    match require_init_pid_namespace() {
        Ok(()) => report.row("PID namespace", true, "the host's"),
        Err(e) => {
            report.usable = false;
            report.row("PID namespace", false, &e.to_string());
        }
    }
    match Btf::of_running_kernel() {
        Ok(btf) => {
            report.row("kernel types (BTF)", true, &format!("{} types", btf.len()));
            // Without the capabilities every attempt fails, whatever the kernel can do.
            if report.usable {
                for feature in Features::probe(&btf).rows() {
                    match &feature.state {
                        Ok(how) => report.row(feature.name, true, how),
                        Err(why) => report.row(feature.name, false, why),
                    }
                }
            } else {
                report.row("kernel features", false, "cannot be told without the capabilities above");
            }
        }
        Err(e) => {
            report.usable = false;
            report.row("kernel types (BTF)", false, &e.to_string());
        }
    }
    let verdict = if report.usable {
        "processes can be profiled on this host"
    } else {
        "processes cannot be profiled: see the rows marked no"
    };
    let _ = writeln!(report.text, "\n{verdict}");
    Ok(report)
}

impl Report {
    fn row(&mut self, name: &str, there: bool, detail: &str) {
        let _ = writeln!(self.text, "{:<22} {:<4} {detail}", name, if there { "yes" } else { "no" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_and_feature_has_a_row() {
        let text = check().unwrap().text;
        for name in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "PID namespace", "BTF", "run queue", "task probes"] {
            assert!(text.contains(name), "{name} is missing from\n{text}");
        }
    }
}
