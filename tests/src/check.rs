//! What `profiler check --json` says of this host.

use rustix::thread::CapabilitySet;
use serde_json::Value;

use crate::profiler::{run_to_end, run_to_end_as_nobody};
use crate::program::Ended;

/// The document.
#[derive(Clone, Debug)]
pub struct Check(pub Value);

impl Check {
    /// Asks, for a profiler that is not to use some ways.
    ///
    /// # Panics
    /// It fails, or answers no JSON.
    pub fn run(without: &[&str]) -> Check {
        let mut arguments = vec!["check", "--json"];
        arguments.extend(without.iter().flat_map(|way| ["--without", way]));
        Check::of(&run_to_end(&arguments), 0)
    }

    /// Asks as a user without privileges but for these capabilities.
    ///
    /// # Panics
    /// As for [`Check::run`].
    pub fn run_as_nobody(capabilities: CapabilitySet) -> Check {
        Check::of(&run_to_end_as_nobody(capabilities, &["check", "--json"]), 0)
    }

    /// Reads what it said, and ended with this code.
    ///
    /// # Panics
    /// It did not, or it is no JSON.
    pub fn of(ended: &Ended, code: i32) -> Check {
        assert_eq!(ended.code(), Some(code), "{ended:?}");
        let text = ended.stdout.join("\n");
        Check(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    /// A signal's row.
    ///
    /// # Panics
    /// There is none.
    pub fn signal(&self, name: &str) -> &Value {
        let rows = self.0["signals"].as_array().expect("signals are a list");
        rows.iter().find(|row| row["signal"] == name).unwrap_or_else(|| panic!("no signal {name} in {}", self.0))
    }

    /// All rows.
    pub fn signals(&self) -> impl Iterator<Item = &Value> {
        self.0["signals"].as_array().into_iter().flatten()
    }

    /// The way that is chosen for a signal; `None` where there is none.
    pub fn way(&self, signal: &str) -> Option<&str> {
        self.signal(signal)["way"].as_str()
    }

    /// All ways that are there, the chosen one first.
    pub fn ways(&self, signal: &str) -> Vec<String> {
        let row = self.signal(signal);
        let others = row["otherwise"].as_array().into_iter().flatten();
        std::iter::once(&row["way"]).chain(others).filter_map(|way| Some(way.as_str()?.to_owned())).collect()
    }
}
