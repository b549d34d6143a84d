//! `/minutes`: how many tasks of each name were spawned and ended in each minute, as JSON.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::event::Outcome;
use crate::model::snapshot::{Cell, MINUTE_NS, MinutesSnapshot, NameId};

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// One task's name; all where it is absent.
    task: Option<String>,
    /// So many minutes, up to now; all that are kept where it is absent.
    minutes: Option<usize>,
}

/// The document. The oldest minute first; the last one goes on.
pub fn document(snapshot: &MinutesSnapshot, query: &Query) -> Value {
    let wanted = |id: NameId| query.task.as_deref().is_none_or(|task| snapshot.name(id) == task);
    let skipped = query.minutes.map_or(0, |most| snapshot.minutes.len().saturating_sub(most));
    let minutes = snapshot.minutes.iter().skip(skipped).map(|minute| {
        let cells = minute.cells.iter().filter(|(id, _)| wanted(*id));
        json!({
            "minute": timestamp(minute.number * MINUTE_NS),
            "complete": minute.complete,
            "tasks": cells.map(|(id, cell)| task(snapshot.name(*id), cell)).collect::<Vec<_>>(),
        })
    });
    let last = snapshot.last_spawns().filter(|(id, at_ns)| *at_ns > 0 && wanted(*id));
    let last: Map<String, Value> =
        last.map(|(id, at_ns)| (snapshot.name(id).to_owned(), timestamp(at_ns).into())).collect();
    json!({ "minutes": minutes.collect::<Vec<_>>(), "last_spawned": last })
}

fn task(name: &str, cell: &Cell) -> Value {
    let mut row = Map::from_iter([("task".to_owned(), name.into()), ("spawned".to_owned(), cell[0].into())]);
    row.extend(Outcome::ALL.iter().map(|&outcome| (outcome.label().to_owned(), cell[1 + outcome as usize].into())));
    row.into()
}

/// As `2026-11-27T07:40:00Z`, in whole seconds.
fn timestamp(epoch_ns: u64) -> String {
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_nanos(epoch_ns)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::model::snapshot::Minute;

    fn query(text: Value) -> Query {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn minutes_are_a_document() {
        let minute = |number: u64, cells: &[(u32, [u64; 5])]| {
            let cells = cells.iter().map(|&(id, cell)| (NameId(id), cell)).collect();
            Arc::new(Minute { number, complete: true, cells })
        };
        let first = 1_700_000_000 / 60;
        let mut panicked = [0; 5];
        panicked[1 + Outcome::Panicked as usize] = 1;
        let snapshot = MinutesSnapshot {
            minutes: vec![
                minute(first, &[(0, [1, 0, 0, 0, 0]), (1, panicked)]),
                minute(first + 1, &[(0, [1, 0, 0, 0, 0])]),
            ],
            names: vec!["a".into(), "b".into()],
            last_spawn_ns: vec![1_700_000_060_000_000_000, 0],
        };
        let all = document(&snapshot, &Query::default());
        assert_eq!(all["minutes"][0]["minute"], "2023-11-14T22:13:00Z");
        assert_eq!(all["minutes"][0]["complete"], true);
        assert_eq!(
            all["minutes"][0]["tasks"][0],
            json!({ "task": "a", "spawned": 1, "completed": 0, "cancelled": 0,
                                                          "panicked": 0, "unknown": 0 })
        );
        assert_eq!(all["minutes"][0]["tasks"][1]["panicked"], 1);
        assert_eq!(all["last_spawned"], json!({ "a": "2023-11-14T22:14:20Z" }));
        let last = document(&snapshot, &query(json!({ "minutes": 1, "task": "a" })));
        assert_eq!(last["minutes"].as_array().unwrap().len(), 1);
        assert_eq!(last["minutes"][0]["tasks"][0]["spawned"], 1);
        let none = document(&snapshot, &query(json!({ "task": "c" })));
        assert!(none["minutes"].as_array().unwrap().iter().all(|minute| minute["tasks"] == json!([])));
        assert!(serde_json::from_value::<Query>(json!({ "tsk": "a" })).is_err());
    }
}
