//! What the kernel itself says: capabilities, listening sockets, schedulers' accounts. Never through the profiler.

use std::fs;
use std::io;

/// Links of BPF programs to perf events that a process holds.
///
/// # Panics
/// The process has ended.
pub fn perf_links(pid: u32) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process lives").flatten();
    let is_perf = |text: String| text.lines().any(|line| line.split_whitespace().eq(["link_type:", "perf"]));
    descriptors.filter(|info| fs::read_to_string(info.path()).is_ok_and(is_perf)).count()
}

/// Resident memory of a process, KiB.
///
/// # Panics
/// The process has ended.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

/// The children of a process.
///
/// # Panics
/// The process has ended.
pub fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the process lives");
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// The effective capabilities of a process, as bits.
///
/// # Panics
/// The process has ended.
pub fn effective_capabilities(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a row of each status");
    u64::from_str_radix(set.trim(), 16).expect("a hexadecimal number")
}

/// Lets all threads of a process run on these CPUs only.
///
/// # Panics
/// The process has ended, or there are no such CPUs.
pub fn pin(pid: u32, cpus: &[usize]) {
    // SAFETY: a set of CPUs is a plain array of bits.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is live, and larger than any CPU's number here.
    cpus.iter().for_each(|&cpu| unsafe { libc::CPU_SET(cpu, &mut set) });
    for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives").flatten() {
        let tid: i32 = thread.file_name().to_string_lossy().parse().expect("a thread's id");
        // SAFETY: a live set of the size that is named.
        let result = unsafe { libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &raw const set) };
        assert_eq!(result, 0, "failed to pin thread {tid}: {}", io::Error::last_os_error());
    }
}

/// A listening socket as /proc shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub inode: u64,
    pub port: u16,
    /// Connections that wait to be accepted.
    pub queue: u64,
}

/// The listening sockets of a process's network namespace.
///
/// # Panics
/// The process has ended.
pub fn listening(pid: u32) -> Vec<Listening> {
    const LISTEN: &str = "0A";
    ["tcp", "tcp6"]
        .iter()
        .flat_map(|table| {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).expect("the kernel lists its sockets");
            text.lines().skip(1).filter_map(row).collect::<Vec<_>>()
        })
        .filter_map(|(state, socket)| (state == LISTEN).then_some(socket))
        .collect()
}

/// A row of /proc/net/tcp: the state, and what it says of a listening socket.
fn row(line: &str) -> Option<(String, Listening)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let port = u16::from_str_radix(words.get(1)?.rsplit(':').next()?, 16).ok()?;
    // tx_queue:rx_queue
    let queue = u64::from_str_radix(words.get(4)?.split(':').nth(1)?, 16).ok()?;
    Some(((*words.get(3)?).to_owned(), Listening { inode: words.get(9)?.parse().ok()?, port, queue }))
}

/// A counter of the table TcpExt in a process's network namespace.
///
/// # Panics
/// There is none of that name.
pub fn tcp_counter(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/net/netstat")).expect("the kernel counts");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
    let [names, values] = rows[..] else { panic!("TcpExt has {} rows", rows.len()) };
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = pairs.find(|(n, _)| *n == name).unwrap_or_else(|| panic!("the kernel has no counter {name}"));
    value.parse().expect("a counter is a number")
}

/// What the scheduler accounts for a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub on_cpu_ns: u64,
    /// Time in the run queue.
    pub wait_ns: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
}

/// The scheduler's account of one thread.
///
/// # Panics
/// The thread has ended.
pub fn account(pid: u32, tid: u32) -> Account {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{file}")).expect("the thread lives");
    let (schedstat, status) = (read("schedstat"), read("status"));
    let mut times = schedstat.split_whitespace().map(|field| field.parse().expect("times are numbers"));
    let mut time = || times.next().expect("schedstat has three fields");
    let count = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim_start_matches(':').trim().parse().ok()).expect("the kernel counts switches")
    };
    Account {
        on_cpu_ns: time(),
        wait_ns: time(),
        voluntary_switches: count("voluntary_ctxt_switches"),
        involuntary_switches: count("nonvoluntary_ctxt_switches"),
    }
}

/// Time that interrupts and the hypervisor have taken from all CPUs, seconds.
///
/// # Panics
/// The kernel does not say.
pub fn stolen_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").expect("the kernel keeps statistics");
    // user nice system idle iowait irq softirq steal, in ticks
    let ticks: Vec<u64> =
        text.lines().next().into_iter().flat_map(str::split_whitespace).flat_map(str::parse).collect();
    // SAFETY: no precondition.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    ticks[5..8].iter().sum::<u64>() as f64 / per_second as f64
}

/// CLOCK_MONOTONIC, nanoseconds: the clock of the fixtures, and of BPF.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is live; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
