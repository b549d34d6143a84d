use super::*;

/// Check that a plan without probes says why, in every row.
#[test]
fn an_old_version_is_refused() {
    let plan = without_probes(Version { minor: 17, patch: 0 });
    assert_eq!(plan.signals.len(), SIGNALS.len());
    assert!(plan.signals.iter().all(|s| s.state.as_ref().is_err_and(|why| why.contains("older than 1.18"))));
}
