//! The table of signals: what is measured with the kernel's help, by which ways, the best first. Which of them this
//! kernel has is decided once, and both `check` and attaching go by it. Never what a signal means.

use super::feature::{Feature, Features};

/// How the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// At the entry or exit of a function of the kernel's.
    Fentry,
    /// A tracepoint with typed arguments.
    BtfTracepoint,
    /// A tracepoint of system calls.
    Tracepoint,
    /// A breakpoint in the kernel.
    Kprobe,
    /// Many breakpoints in a program, by one link.
    UprobeMulti,
    /// Single breakpoints in a program.
    Uprobe,
    /// A clock.
    PerfEvent,
    /// Netlink.
    SockDiag,
}

impl Attach {
    /// All.
    pub const ALL: [Attach; 8] = [
        Attach::Fentry,
        Attach::BtfTracepoint,
        Attach::Tracepoint,
        Attach::Kprobe,
        Attach::UprobeMulti,
        Attach::Uprobe,
        Attach::PerfEvent,
        Attach::SockDiag,
    ];

    /// What it is called.
    pub const fn label(self) -> &'static str {
        match self {
            Attach::Fentry => "fentry",
            Attach::BtfTracepoint => "tp_btf",
            Attach::Tracepoint => "tracepoint",
            Attach::Kprobe => "kprobe",
            Attach::UprobeMulti => "uprobe_multi",
            Attach::Uprobe => "uprobe",
            Attach::PerfEvent => "perf_event",
            Attach::SockDiag => "sock_diag",
        }
    }
}

/// One way to measure a signal.
#[derive(Debug)]
pub struct Way {
    /// How it is attached.
    pub attach: Attach,
    /// What it takes.
    needs: &'static [Feature],
    /// What is said where it is the way.
    pub how: &'static str,
    /// What it lacks that a better way has; empty where it lacks nothing.
    pub lacks: &'static str,
}

/// Something that is measured.
#[derive(Debug)]
pub struct Signal {
    /// What it is called in `/status`.
    pub name: &'static str,
    /// What it is, for people.
    pub measures: &'static str,
    /// The best first.
    pub ways: &'static [Way],
    /// What follows where no way is there.
    pub without: &'static str,
}

const fn way(attach: Attach, needs: &'static [Feature], how: &'static str, lacks: &'static str) -> Way {
    Way { attach, needs, how, lacks }
}

/// Names of signals that are asked for by name.
pub const RUN_QUEUE: &str = "run_queue";
/// See [`RUN_QUEUE`].
pub const SLEEP_CAUSE: &str = "sleep_cause";
/// See [`RUN_QUEUE`].
pub const EVENT_LOOP: &str = "event_loop";
/// See [`RUN_QUEUE`].
pub const ACCEPT_QUEUE: &str = "accept_queue";
/// See [`RUN_QUEUE`].
pub const ACCEPT_DEPTH: &str = "accept_depth";
/// See [`RUN_QUEUE`].
pub const ACCEPT_WAIT: &str = "accept_wait";
/// See [`RUN_QUEUE`].
pub const ACCEPT_URING: &str = "accept_uring";
/// See [`RUN_QUEUE`].
pub const TASKS: &str = "tasks";
/// See [`RUN_QUEUE`].
pub const TASK_POLLS: &str = "task_polls";
/// See [`RUN_QUEUE`].
pub const TASK_CPU: &str = "task_cpu";

/// See [`RUN_QUEUE`].
pub const REQUESTS: &str = "requests";

/// All signals.
pub const SIGNALS: &[Signal] = &[
    Signal {
        name: RUN_QUEUE,
        measures: "waits for a CPU, time on it, switches",
        ways: &[way(Attach::BtfTracepoint, &[Feature::SchedSwitch], "by BTF tracepoints", "")],
        without: "neither scheduling nor the forks of a target are seen",
    },
    Signal {
        name: SLEEP_CAUSE,
        measures: "time asleep by cause",
        ways: &[way(
            Attach::BtfTracepoint,
            &[Feature::SchedSwitch, Feature::UserRegisters],
            "by the registers of user mode at each switch",
            "",
        )],
        without: "time asleep is not told by cause",
    },
    Signal {
        name: EVENT_LOOP,
        measures: "event loops: active and idle time, iterations, delays",
        ways: &[way(
            Attach::BtfTracepoint,
            &[Feature::SchedSwitch, Feature::UserRegisters],
            "by the registers of user mode at each switch",
            "",
        )],
        without: "event loops are not recognised",
    },
    Signal {
        name: ACCEPT_QUEUE,
        measures: "length, limit and overflows of accept queues",
        ways: &[way(Attach::SockDiag, &[Feature::SockDiag], "by sock_diag at each scrape", "")],
        without: "accept queues are not measured",
    },
    Signal {
        name: ACCEPT_DEPTH,
        measures: "the queue's length at each enqueue",
        ways: &[
            way(
                Attach::Fentry,
                &[Feature::Fentry, Feature::AcceptFunctions],
                "by fentry of the functions that enqueue a connection",
                "",
            ),
            way(
                Attach::BtfTracepoint,
                &[Feature::DataReady],
                "by BTF tracepoint sk_data_ready",
                "each segment that any socket receives costs some 30 ns",
            ),
            way(
                Attach::Kprobe,
                &[Feature::Kprobe, Feature::AcceptFunctions],
                "by kprobes at the functions that enqueue a connection",
                "",
            ),
        ],
        without: "the length is read by sock_diag at each scrape, and its histogram is absent",
    },
    Signal {
        name: ACCEPT_WAIT,
        measures: "how long connections wait to be accepted",
        ways: &[
            way(
                Attach::Fentry,
                &[Feature::Fentry, Feature::AcceptFunctions],
                "by fentry of the functions that enqueue and fexit of the one that accepts a connection",
                "",
            ),
            way(
                Attach::UprobeMulti,
                &[Feature::SetState, Feature::UprobeMulti],
                "by BTF tracepoint inet_sock_set_state, and uprobes behind accept in the C library",
                "each accept costs a trap",
            ),
            way(
                Attach::Uprobe,
                &[Feature::SetState, Feature::Uprobe],
                "by BTF tracepoint inet_sock_set_state, and uprobes behind accept in the C library",
                "each accept costs a trap",
            ),
            way(
                Attach::Tracepoint,
                &[Feature::SetState, Feature::SyscallTracepoints, Feature::UserRegisters],
                "by BTF tracepoint inet_sock_set_state, and tracepoint sys_exit_accept",
                "each system call of every process costs some 80 ns",
            ),
        ],
        without: "waits in accept queues are not measured",
    },
    Signal {
        name: ACCEPT_URING,
        measures: "accepts by io_uring, where a target has one",
        ways: &[
            way(
                Attach::Fentry,
                &[Feature::Fentry, Feature::AcceptFunctions],
                "by fexit of the function that accepts a connection",
                "",
            ),
            way(Attach::BtfTracepoint, &[Feature::Uring], "by BTF tracepoints of io_uring", ""),
        ],
        without: "connections that are accepted so are counted as unseen",
    },
    Signal {
        name: REQUESTS,
        measures: "connections, requests and the time after a reply, where asked for",
        ways: &[way(
            Attach::BtfTracepoint,
            &[Feature::SockLength, Feature::UserRegisters],
            "by BTF tracepoints sock_send_length and sock_recv_length",
            "every process of this machine pays for them",
        )],
        without: "connections and requests are not measured",
    },
    Signal {
        name: TASKS,
        measures: "births and ends of tasks",
        ways: &[
            way(Attach::UprobeMulti, &[Feature::UprobeMulti, Feature::AttachCookie], "by uprobe_multi", ""),
            way(
                Attach::Uprobe,
                &[Feature::Uprobe, Feature::AttachCookie],
                "by perf-event uprobes",
                "up to 20 probes per process, fewer than most programs need",
            ),
        ],
        without: "tasks are known from the target's memory only",
    },
    Signal {
        name: TASK_POLLS,
        measures: "polls and wakes of tasks",
        ways: &[way(Attach::UprobeMulti, &[Feature::UprobeMulti, Feature::AttachCookie], "by uprobe_multi", "")],
        without: "polls and wakes are not measured",
    },
    Signal {
        name: TASK_CPU,
        measures: "CPU time by type of task",
        ways: &[way(Attach::PerfEvent, &[Feature::CpuClock, Feature::UserRegisters], "by a clock per CPU", "")],
        without: "CPU time by task is not sampled",
    },
];

/// What this kernel permits of a signal.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// Which.
    pub signal: &'static Signal,
    /// The ways that are there, the best first.
    usable: Vec<&'static Way>,
    /// The ways that are not, with what each lacks and what can be done about it.
    pub refused: Vec<Refusal>,
}

/// Why a way is not there.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Which.
    pub way: &'static Way,
    /// What is missing.
    pub why: String,
    /// What can be done about it; empty where it was not wanted.
    pub remedy: &'static str,
}

/// A way that is not to be used, as if this kernel did not have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwanted {
    /// For this signal only; `None` for all.
    signal: Option<&'static str>,
    attach: Attach,
}

impl Unwanted {
    /// A way for all signals.
    pub const fn everywhere(attach: Attach) -> Unwanted {
        Unwanted { signal: None, attach }
    }

    /// Reads `WAY` or `SIGNAL:WAY`.
    ///
    /// # Errors
    /// There is no such signal or way.
    pub fn parse(text: &str) -> Result<Unwanted, String> {
        let (signal, way) = text.split_once(':').map_or((None, text), |(signal, way)| (Some(signal), way));
        let ways = || Attach::ALL.map(Attach::label).join(", ");
        let attach = Attach::ALL.into_iter().find(|attach| attach.label() == way);
        let attach = attach.ok_or_else(|| format!("must be one of {}, perhaps behind SIGNAL:", ways()))?;
        let Some(signal) = signal else { return Ok(Unwanted::everywhere(attach)) };
        let known = SIGNALS.iter().find(|known| known.name == signal);
        let names = || SIGNALS.iter().map(|signal| signal.name).collect::<Vec<_>>().join(", ");
        let known = known.ok_or_else(|| format!("signals are {}", names()))?;
        Ok(Unwanted { signal: Some(known.name), attach })
    }

    fn covers(self, signal: &Signal, way: &Way) -> bool {
        self.attach == way.attach && self.signal.is_none_or(|name| name == signal.name)
    }
}

/// All signals on this kernel.
#[derive(Clone, Debug)]
pub struct Signals(Vec<Evaluated>);

impl Signals {
    /// Decides by which ways each signal can be measured; `without` are ways that are not to be used.
    pub fn evaluate(features: &Features, without: &[Unwanted]) -> Signals {
        Signals(SIGNALS.iter().map(|signal| evaluate(signal, features, without)).collect())
    }

    /// In the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = &Evaluated> {
        self.0.iter()
    }

    /// The signal of a name in [`SIGNALS`].
    ///
    /// # Panics
    /// There is none: names are the constants of this file.
    pub fn get(&self, name: &str) -> &Evaluated {
        self.0.iter().find(|evaluated| evaluated.signal.name == name).expect("a name of this file")
    }

    /// The best way to a signal.
    ///
    /// # Errors
    /// Why there is none, and what follows.
    pub fn way(&self, name: &str) -> Result<&'static Way, String> {
        self.get(name).way()
    }
}

impl Evaluated {
    /// The best way.
    ///
    /// # Errors
    /// Why there is none, and what follows.
    pub fn way(&self) -> Result<&'static Way, String> {
        self.usable.first().copied().ok_or_else(|| self.why_not())
    }

    /// The ways that are there, the best first.
    pub fn ways(&self) -> impl Iterator<Item = &'static Way> + '_ {
        self.usable.iter().copied()
    }

    /// Whether a way is there.
    pub fn permits(&self, attach: Attach) -> bool {
        self.usable.iter().any(|way| way.attach == attach)
    }

    fn why_not(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        for refusal in &self.refused {
            if !reasons.contains(&refusal.why.as_str()) {
                reasons.push(&refusal.why);
            }
        }
        format!("{}: {}", reasons.join("; "), self.signal.without)
    }
}

fn evaluate(signal: &'static Signal, features: &Features, without: &[Unwanted]) -> Evaluated {
    let (mut usable, mut refused) = (Vec::new(), Vec::new());
    for way in signal.ways {
        let missing = way.needs.iter().find(|&&need| !features.has(need));
        match missing.map(|need| need.row()) {
            Some(row) => refused.push(Refusal { way, why: row.missing.to_owned(), remedy: row.remedy }),
            None if without.iter().any(|unwanted| unwanted.covers(signal, way)) => {
                refused.push(Refusal { way, why: format!("{} is not wanted", way.attach.label()), remedy: "" });
            }
            None => usable.push(way),
        }
    }
    Evaluated { signal, usable, refused }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that names are told apart, and that no way is the same as a better one.
    #[test]
    fn the_table_is_consistent() {
        for signal in SIGNALS {
            assert_eq!(SIGNALS.iter().filter(|other| other.name == signal.name).count(), 1, "{}", signal.name);
            for way in signal.ways {
                let same = signal.ways.iter().filter(|other| other.attach == way.attach).count();
                assert_eq!(same, 1, "{} by {}", signal.name, way.attach.label());
                assert!(!way.needs.is_empty());
            }
        }
    }

    #[test]
    fn a_way_may_be_unwanted_for_one_signal() {
        assert_eq!(Unwanted::parse("kprobe"), Ok(Unwanted::everywhere(Attach::Kprobe)));
        let one = Unwanted::parse("accept_depth:tp_btf").unwrap();
        let covered = |name| {
            let signal = SIGNALS.iter().find(|signal| signal.name == name).unwrap();
            signal.ways.iter().any(|way| one.covers(signal, way))
        };
        assert!(covered(ACCEPT_DEPTH) && !covered(RUN_QUEUE));
        assert!(Unwanted::parse("no_such").unwrap_err().contains("fentry"));
        assert!(Unwanted::parse("no_such:fentry").unwrap_err().contains("run_queue"));
    }

    #[test]
    fn a_signal_without_a_way_says_what_is_missing_and_what_follows() {
        let signals = Signals::evaluate(&Features::none(), &[]);
        for evaluated in signals.iter() {
            let why = evaluated.way().expect_err("nothing is there");
            assert!(why.contains(evaluated.signal.without), "{why}");
            assert!(evaluated.refused.iter().all(|refusal| !refusal.remedy.is_empty()), "{why}");
        }
        let why = signals.way(TASK_CPU).expect_err("nothing is there");
        assert!(why.contains("perf clock"), "{why}");
    }
}
