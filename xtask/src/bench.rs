//! `cargo xtask bench`.

use anyhow::Result;

/// The task.
pub fn run(_name: Option<&str>) -> Result<()> {
    anyhow::bail!("not yet")
}
