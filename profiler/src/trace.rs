//! Full traces: every birth, end, poll and wake as an event of the Trace Event Format, in a file that Perfetto and
//! chrome://tracing open. Never what an event means to the model.
//!
//! The file is a JSON array whose closing bracket the format allows to be absent: what was written is of use whenever
//! writing ends.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use profiler_common::event::{Header, TaskRecord, kind};
use profiler_common::map::wake;
use serde::Serialize;

/// Bytes that are written to the file at once.
const BUFFER: usize = 1 << 20;

/// A trace that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the trace to `{}`: {source}{}", path.display(), if source.kind() == io::ErrorKind::AlreadyExists { "; no file is overwritten, name another" } else { "" })]
pub struct TraceError {
    path: PathBuf,
    source: io::Error,
}

/// Why no more is written.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The file is as large as it may become.
    #[error("the trace has {events} events in {mib} MiB, which is its limit: nothing more is traced (--trace-limit)")]
    Full {
        /// Events that it has.
        events: u64,
        /// Its limit.
        mib: u64,
    },
    /// It cannot be written.
    #[error(transparent)]
    Failed(#[from] TraceError),
}

/// A trace that is being written.
pub struct Trace<W: Write = BufWriter<File>> {
    out: W,
    path: PathBuf,
    limit: u64,
    written: u64,
    events: u64,
}

/// One event. Times are in microseconds of CLOCK_MONOTONIC.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    cat: &'static str,
    ph: &'static str,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    args: Arguments,
}

#[derive(Serialize)]
struct Arguments {
    /// Address of the task.
    task: String,
    /// The runtime's id of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wake: Option<&'static str>,
}

impl Trace {
    /// Creates the file, of at most `limit` bytes.
    ///
    /// # Errors
    /// It exists, or cannot be written.
    pub fn create(path: &Path, limit: u64) -> Result<Trace, TraceError> {
        let failed = |source| TraceError { path: path.to_owned(), source };
        let file = File::create_new(path).map_err(failed)?;
        Trace::new(BufWriter::with_capacity(BUFFER, file), path, limit)
    }
}

impl<W: Write> Trace<W> {
    fn new(mut out: W, path: &Path, limit: u64) -> Result<Trace<W>, TraceError> {
        out.write_all(b"[").map_err(|source| TraceError { path: path.to_owned(), source })?;
        Ok(Trace { out, path: path.to_owned(), limit, written: 1, events: 0 })
    }

    /// Adds what a record says. `name` is that of the task's type.
    ///
    /// # Errors
    /// Nothing more is to be added.
    pub fn add(&mut self, record: &TaskRecord, name: &str) -> Result<(), End> {
        let TaskRecord { header, task, parent, .. } = *record;
        let Header { time_ns, pid, tid, .. } = header;
        let task = format!("{task:#x}");
        let ts = time_ns as f64 / 1e3;
        let id = (record.id != 0).then_some(record.id);
        let plain = Event {
            name,
            cat: "task",
            ph: "b",
            ts,
            dur: None,
            pid,
            tid,
            id: Some(task.clone()),
            s: None,
            args: Arguments { task, id, wake: None },
        };
        let event = match header.kind {
            kind::TASK_SPAWNED => plain,
            kind::TASK_COMPLETED => Event { ph: "e", ..plain },
            kind::TASK_POLLED => {
                let dur = parent as f64 / 1e3;
                Event { cat: "poll", ph: "X", ts: ts - dur, dur: Some(dur), id: None, ..plain }
            }
            kind::TASK_WOKEN => {
                let wake = wake::LABELS.get(parent as usize).copied();
                let args = Arguments { wake, ..plain.args };
                Event { cat: "wake", ph: "i", s: Some("t"), id: None, args, ..plain }
            }
            _ => return Ok(()),
        };
        self.write(&event)
    }

    fn write(&mut self, event: &Event<'_>) -> Result<(), End> {
        let mut line = serde_json::to_vec(event).map_err(|e| self.failed(e.into()))?;
        if self.written + line.len() as u64 + 2 > self.limit {
            return Err(End::Full { events: self.events, mib: self.limit >> 20 });
        }
        let mut separated = if self.events == 0 { b"\n".to_vec() } else { b",\n".to_vec() };
        separated.append(&mut line);
        self.out.write_all(&separated).map_err(|e| self.failed(e))?;
        self.written += separated.len() as u64;
        self.events += 1;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> TraceError {
        TraceError { path: self.path.clone(), source }
    }

    /// Ends the file, and returns how many events it has.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<u64, TraceError> {
        let ended = self.out.write_all(b"\n]\n").and_then(|()| self.out.flush());
        ended.map_err(|e| self.failed(e)).map(|()| self.events)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn record(kind: u16, what: u64) -> TaskRecord {
        let header = Header { time_ns: 5_000_500, pid: 7, tid: 8, kind, flags: 0, site: 0 };
        TaskRecord { header, task: 0xabc0, vtable: 1, id: 0, parent: what }
    }

    fn events(records: &[TaskRecord]) -> Vec<Value> {
        let mut out = Vec::new();
        let mut trace = Trace::new(&mut out, Path::new("trace"), 1 << 20).expect("memory can be written");
        for record in records {
            trace.add(record, "a").expect("it fits");
        }
        assert_eq!(trace.finish().expect("memory can be written"), records.len() as u64);
        serde_json::from_slice(&out).expect("it is JSON")
    }

    /// Check that a poll is a span which ends at its record, that a wake says its way, and that a life has both ends.
    #[test]
    fn records_become_events() {
        let all = events(&[
            record(kind::TASK_SPAWNED, 0),
            record(kind::TASK_WOKEN, wake::BY_REF as u64),
            record(kind::TASK_POLLED, 1_000_500),
            record(kind::TASK_COMPLETED, 0),
        ]);
        let phases: Vec<&str> = all.iter().filter_map(|event| event["ph"].as_str()).collect();
        assert_eq!(phases, ["b", "i", "X", "e"]);
        assert_eq!((all[2]["ts"].as_f64(), all[2]["dur"].as_f64()), (Some(4000.0), Some(1000.5)));
        assert_eq!(all[1]["args"]["wake"], "by_ref");
        assert_eq!((all[0]["id"].as_str(), all[3]["id"].as_str()), (Some("0xabc0"), Some("0xabc0")));
        assert!(events(&[]).is_empty());
    }

    /// Check that a full file says so, and is still JSON.
    #[test]
    fn a_limit_is_kept() {
        let mut out = Vec::new();
        let mut trace = Trace::new(&mut out, Path::new("trace"), 400).expect("memory can be written");
        let ended = (0..9).find_map(|_| trace.add(&record(kind::TASK_SPAWNED, 0), "a").err()).expect("a limit");
        assert!(matches!(ended, End::Full { events: 1.., .. }), "{ended}");
        let events = trace.finish().expect("memory can be written");
        assert_eq!(serde_json::from_slice::<Vec<Value>>(&out).expect("it is JSON").len() as u64, events);
        assert!(out.len() <= 404);
    }
}
