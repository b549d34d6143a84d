//! Where the threads of a target spent their time, by name. Never which of them a runtime uses, or for what.

use std::collections::{HashMap, HashSet};

use profiler_common::event::ThreadRecord;
use profiler_common::sched::Thread;

use crate::clock;
use crate::model::snapshot::ThreadsSnapshot;
use crate::target::process;

/// Names that are told apart per target.
const NAMES: usize = 16;
/// What the others share.
const OTHER: &str = "other";
/// The first thread of a process: its name is the process's.
const MAIN: &str = "main";
/// A thread that has had a name for so long keeps it, nanoseconds.
const SETTLED_NS: u64 = 100_000_000;
/// What stands before and between the numbers at the end of a name.
const SEPARATORS: [char; 10] = [' ', '-', '_', '.', ':', '/', '#', '(', '[', ')'];

/// What a thread had, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Time {
    on_cpu_ns: u64,
    run_queue_ns: u64,
    asleep_ns: u64,
}

impl Time {
    fn add(&mut self, more: Time) {
        self.on_cpu_ns += more.on_cpu_ns;
        self.run_queue_ns += more.run_queue_ns;
        self.asleep_ns += more.asleep_ns;
    }

    /// What came since `earlier`. A thread of the same id that has less is another one.
    fn since(self, earlier: Time) -> Time {
        if self.on_cpu_ns < earlier.on_cpu_ns || self.run_queue_ns < earlier.run_queue_ns {
            return self;
        }
        Time {
            on_cpu_ns: self.on_cpu_ns - earlier.on_cpu_ns,
            run_queue_ns: self.run_queue_ns - earlier.run_queue_ns,
            asleep_ns: self.asleep_ns.saturating_sub(earlier.asleep_ns),
        }
    }
}

/// A thread as it was looked at last.
struct Seen {
    time: Time,
    name: usize,
    /// When it was seen first under that name.
    named_ns: u64,
    /// Whether it has been counted as started, or was there before.
    started: bool,
    /// Looks at which it was not there: its end has yet to be reported, once.
    missed: u32,
}

/// The threads of one name.
struct Group {
    name: String,
    time: Time,
    started: u64,
    ended: u64,
}

/// The sums by name, and what is needed to go on with them.
#[derive(Default)]
pub(super) struct Threads {
    /// In the order of first sight.
    groups: Vec<Group>,
    seen: HashMap<u32, Seen>,
    /// Those that were there before and have not ended, with the looks at which they were not there.
    older: HashMap<u32, u32>,
    /// When it was known which were there before: who ended until then is none that came or went.
    since_ns: u64,
    /// The threads that there were at a time.
    listed: (Vec<u32>, u64),
}

impl Threads {
    /// The threads of these processes, as of `since_ns` (CLOCK_MONOTONIC) or later.
    pub fn ids(&mut self, processes: &HashSet<u32>, since_ns: u64) -> &[u32] {
        if self.listed.1 < since_ns {
            let now_ns = clock::monotonic_ns();
            self.listed = (processes.iter().flat_map(|&pid| process::threads(pid)).collect(), now_ns);
        }
        &self.listed.0
    }

    /// These were there at `now_ns`, before anything is counted.
    pub fn were_there(&mut self, tids: impl IntoIterator<Item = u32>, now_ns: u64) {
        self.older.extend(tids.into_iter().map(|tid| (tid, 0)));
        self.since_ns = now_ns;
    }

    /// A thread that lives, at `now_ns`. `name` is asked only where it may have changed: for a thread that has run.
    pub fn lives(&mut self, tid: u32, thread: &Thread, now_ns: u64, name: impl FnOnce() -> Option<String>) {
        let open = |since: u64| if since == 0 { 0 } else { now_ns.saturating_sub(since) };
        let asleep = thread.on_cpu_ns == 0 && thread.runnable_ns == 0;
        let time = Time {
            on_cpu_ns: thread.on_cpu_total_ns + open(thread.on_cpu_ns),
            run_queue_ns: thread.run_queue_total_ns,
            asleep_ns: thread.asleep_total_ns + if asleep { open(thread.off_cpu_ns) } else { 0 },
        };
        let known = self.seen.get(&tid).filter(|seen| seen.time.on_cpu_ns == time.on_cpu_ns).map(|seen| seen.name);
        let Some(name) = known.or_else(|| Some(self.named(&name()?))) else { return };
        // A thread has its creator's name until it takes its own: it counts where a later look finds it again.
        let is_settled = |seen: &Seen| seen.name == name && now_ns.saturating_sub(seen.named_ns) >= SETTLED_NS;
        let is_settled = self.seen.get(&tid).is_some_and(is_settled);
        self.count(tid, name, time, now_ns);
        if is_settled {
            self.has_started(tid);
        }
    }

    /// A thread that has ended, or is no longer the target's.
    /// Returns its name.
    pub fn ended(&mut self, record: &ThreadRecord) -> String {
        let header = &record.header;
        let name = record.name.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = label(header.tid == header.pid, &String::from_utf8_lossy(name));
        let place = self.named(&name);
        let ThreadRecord { on_cpu_ns, run_queue_ns, asleep_ns, .. } = *record;
        self.count(header.tid, place, Time { on_cpu_ns, run_queue_ns, asleep_ns }, header.time_ns);
        if header.time_ns < self.since_ns {
            self.seen.remove(&header.tid);
        } else {
            self.has_ended(header.tid);
        }
        name
    }

    /// All sums. `live` are the threads that there are now.
    pub fn snapshot(&mut self, live: &[u32]) -> Vec<ThreadsSnapshot> {
        let live: HashSet<u32> = live.iter().copied().collect();
        for (tid, seen) in &mut self.seen {
            seen.missed = if live.contains(tid) { 0 } else { seen.missed + 1 };
        }
        // The report of an end is taken before the next look: without one it was lost, and that is counted elsewhere.
        let gone: Vec<u32> = self.seen.iter().filter(|(_, seen)| seen.missed >= 2).map(|(&tid, _)| tid).collect();
        gone.into_iter().for_each(|tid| self.has_ended(tid));
        let seen = &self.seen;
        self.older.retain(|tid, missed| {
            *missed = if live.contains(tid) || seen.contains_key(tid) { 0 } else { *missed + 1 };
            *missed < 2
        });
        let alive = |name| self.seen.values().filter(|seen| seen.name == name && seen.missed == 0).count() as u64;
        let row = |(index, group): (usize, &Group)| ThreadsSnapshot {
            name: group.name.clone(),
            threads: alive(index),
            started: group.started,
            ended: group.ended,
            on_cpu_ns: group.time.on_cpu_ns,
            run_queue_ns: group.time.run_queue_ns,
            asleep_ns: group.time.asleep_ns,
        };
        self.groups.iter().enumerate().map(row).collect()
    }

    fn count(&mut self, tid: u32, name: usize, time: Time, now_ns: u64) {
        let started = self.older.contains_key(&tid);
        let new = Seen { time: Time::default(), name, named_ns: now_ns, started, missed: 0 };
        let seen = self.seen.entry(tid).or_insert(new);
        self.groups[name].time.add(time.since(seen.time));
        let named_ns = if seen.name == name { seen.named_ns } else { now_ns };
        *seen = Seen { time, name, named_ns, started: seen.started, missed: 0 };
    }

    /// A thread counts as started, once, unless it was there before.
    fn has_started(&mut self, tid: u32) {
        if let Some(seen) = self.seen.get_mut(&tid).filter(|seen| !seen.started) {
            seen.started = true;
            self.groups[seen.name].started += 1;
        }
    }

    fn has_ended(&mut self, tid: u32) {
        self.has_started(tid);
        self.older.remove(&tid);
        if let Some(seen) = self.seen.remove(&tid) {
            self.groups[seen.name].ended += 1;
        }
    }

    /// The place of a name; of the one that all others share once there are as many as are told apart.
    fn named(&mut self, name: &str) -> usize {
        let name = match self.groups.iter().position(|known| known.name == name) {
            Some(place) => return place,
            None if self.groups.len() >= NAMES => OTHER,
            None => name,
        };
        self.groups.iter().position(|known| known.name == name).unwrap_or_else(|| {
            self.groups.push(Group { name: name.to_owned(), time: Time::default(), started: 0, ended: 0 });
            self.groups.len() - 1
        })
    }
}

/// The name under which a thread's time is summed: its own, without the numbers that its pool gave it.
pub(super) fn label(main: bool, comm: &str) -> String {
    if main {
        return MAIN.to_owned();
    }
    let is_number = |c: char| c.is_ascii_digit() || SEPARATORS.contains(&c);
    let comm: String = comm.trim().chars().filter(|c| !c.is_control()).collect();
    match comm.trim_end_matches(is_number) {
        "" => comm,
        group => group.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use profiler_common::event::{Header, kind};

    fn running(on_cpu_total_ns: u64) -> Thread {
        Thread { on_cpu_total_ns, ..Thread::default() }
    }

    fn end(tid: u32, comm: &str, on_cpu_ns: u64) -> ThreadRecord {
        let mut name = [0; 16];
        name[..comm.len()].copy_from_slice(comm.as_bytes());
        let header = Header { time_ns: 50, pid: 1, tid, kind: kind::THREAD_ENDED, flags: 0, site: 0 };
        ThreadRecord { header, name, on_cpu_ns, run_queue_ns: 0, asleep_ns: 0 }
    }

    fn rows(threads: &mut Threads, live: &[u32]) -> Vec<(String, u64, u64)> {
        threads.snapshot(live).into_iter().map(|row| (row.name, row.threads, row.on_cpu_ns)).collect()
    }

    #[test]
    fn numbers_are_no_part_of_a_name() {
        for (comm, expected) in [
            ("tokio-runtime-w", "tokio-runtime-w"),
            ("puma srv tp 001", "puma srv tp"),
            ("worker/3:1", "worker"),
            ("http2", "http"),
            ("42", "42"),
        ] {
            assert_eq!(label(false, comm), expected);
        }
        assert_eq!(label(true, "server 1"), "main");
    }

    #[test]
    fn what_a_thread_had_is_kept_under_its_name() {
        let mut threads = Threads::default();
        threads.lives(2, &running(5), 0, || Some("pool".into()));
        threads.lives(3, &running(7), 0, || Some("pool".into()));
        assert_eq!(rows(&mut threads, &[2, 3]), [("pool".to_owned(), 2, 12)]);
        // It has run, and was renamed: what it had stays.
        threads.lives(2, &running(6), 0, || Some("job".into()));
        threads.ended(&end(3, "pool 9", 10));
        assert_eq!(rows(&mut threads, &[2]), [("pool".to_owned(), 0, 15), ("job".to_owned(), 1, 1)]);
        // Another thread of the same id.
        threads.lives(3, &running(1), 0, || Some("pool".into()));
        assert_eq!(rows(&mut threads, &[2, 3])[0], ("pool".to_owned(), 1, 16));
    }

    /// Check that each thread that came is counted once as started and once as ended, under the name that it had taken, and those that
    /// were there before only as ended.
    #[test]
    fn threads_that_come_and_go() {
        let counts = |threads: &mut Threads, live: &[u32]| -> Vec<(String, u64, u64, u64)> {
            threads.snapshot(live).into_iter().map(|row| (row.name, row.started, row.threads, row.ended)).collect()
        };
        let of = |name: &str, started: u64, alive: u64, ended: u64| (name.to_owned(), started, alive, ended);
        let mut threads = Threads::default();
        threads.were_there([1, 2], 10);
        threads.lives(1, &running(1), 20, || Some("main".into()));
        // Not yet named by itself, and then it is.
        threads.lives(3, &running(1), 20, || Some("server".into()));
        threads.lives(3, &running(1), 30, || Some("server".into()));
        assert_eq!(counts(&mut threads, &[1, 2, 3]), [of("main", 0, 1, 0), of("server", 0, 1, 0)]);
        for at in 1..4 {
            threads.lives(3, &running(1 + at), at * SETTLED_NS, || Some("pool".into()));
        }
        // Two that nobody has looked at, one of which was there before, and one that ended before it was known which were.
        threads.ended(&end(2, "pool 1", 10));
        threads.ended(&end(4, "pool 2", 10));
        let mut before = end(5, "pool 3", 10);
        before.header.time_ns = 9;
        threads.ended(&before);
        let all = [of("main", 0, 1, 0), of("server", 0, 0, 0), of("pool", 2, 1, 2)];
        assert_eq!(counts(&mut threads, &[1, 3]), all);
        // The report of an end was lost.
        counts(&mut threads, &[1]);
        assert_eq!(counts(&mut threads, &[1])[2], of("pool", 2, 0, 3));
        // Another thread of an older one's id is new.
        threads.lives(2, &running(1), 0, || Some("pool".into()));
        threads.lives(2, &running(2), SETTLED_NS, || Some("pool".into()));
        assert_eq!(counts(&mut threads, &[1, 2])[2], of("pool", 3, 1, 3));
    }

    #[test]
    fn names_are_bounded() {
        let mut threads = Threads::default();
        for tid in 1..40 {
            threads.ended(&end(tid + 1, &format!("name{}", char::from(b'A' + tid as u8)), 1));
        }
        let rows = rows(&mut threads, &[]);
        assert_eq!(rows.len(), NAMES + 1);
        assert_eq!(rows[NAMES], (OTHER.to_owned(), 0, 39 - NAMES as u64));
    }
}
