//! Holds uprobes in a process of their own, which outlives the profiler when that is killed.
//!
//! A uprobe is written into the memory of its target, instruction by instruction. The kernel gives up half-way, and
//! leaves breakpoints behind that nobody wants, when the thread that writes or takes them back is killed meanwhile. So
//! the links are made and closed by a child that does nothing else: it ends when its parent has, and closes them first.
//! It keeps the capabilities that this takes, so that its parent can give them up.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use super::uprobe::{Mechanism, Site};
use super::{bpf, capability, perf};

/// The subcommand that is the child.
pub const COMMAND: &str = "hold-probes";
/// What the child is called in lists of processes.
const NAME: &std::ffi::CStr = c"profiler-probes";
/// It works for some milliseconds at a time, and then at once.
const PRIORITY: libc::c_int = -20;
/// Sites of one link: a message has room for them.
const MOST_SITES: usize = 1024;
/// Longest message, bytes.
const MESSAGE: usize = 128 << 10;
/// Longest answer, bytes.
const ANSWER: usize = 4 << 10;

/// What the child is asked. With each comes the socket for the answer; with the first kind, the program, too.
#[derive(Serialize, Deserialize)]
enum Request {
    /// Attach a program to sites of a file, for one process or all that map it.
    Attach { path: Vec<u8>, mechanism: Mechanism, pid: Option<u32>, sites: Vec<Site> },
    /// Let a program run at each tick of a clock on this CPU.
    Clock { cpu: u32, period_ns: u64 },
    /// Let a program run at the tracepoint that it was loaded for.
    Tracing,
    /// Detach what was attached under this number.
    Release { id: u64 },
}

/// What it answers: a number to release it by, or the error's number and words.
type Answer = Result<u64, (Option<i32>, String)>;

/// The child, as its parent sees it.
pub struct Holder {
    /// `None` once the child is told to end.
    control: Option<OwnedFd>,
    child: Mutex<Child>,
}

impl Holder {
    /// Starts it.
    ///
    /// # Errors
    /// No process or socket can be made.
    pub fn start() -> io::Result<Arc<Holder>> {
        let (control, theirs) = pair()?;
        let child = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            // What ends the profiler from the terminal is not to end it as well.
            .process_group(0)
            .spawn()?;
        Ok(Arc::new(Holder { control: Some(control), child: Mutex::new(child) }))
    }

    /// Attaches a program. It is detached when what is returned is dropped.
    ///
    /// # Errors
    /// The kernel refuses; nothing of this call is left attached.
    pub fn attach(
        self: &Arc<Holder>,
        program: BorrowedFd<'_>,
        path: &CString,
        mechanism: Mechanism,
        pid: Option<u32>,
        sites: &[Site],
    ) -> io::Result<Vec<Held>> {
        let request =
            |sites: &[Site]| Request::Attach { path: path.as_bytes().to_vec(), mechanism, pid, sites: sites.to_vec() };
        let attach = |sites| {
            let id = self.ask(&request(sites), Some(program))?;
            Ok(Held { holder: Arc::clone(self), id })
        };
        sites.chunks(MOST_SITES).map(attach).collect()
    }

    /// Lets a program run each `period_ns` of the time of a CPU that is online, until what is returned is dropped.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn clock(self: &Arc<Holder>, program: BorrowedFd<'_>, cpu: u32, period_ns: u64) -> io::Result<Held> {
        let id = self.ask(&Request::Clock { cpu, period_ns }, Some(program))?;
        Ok(Held { holder: Arc::clone(self), id })
    }

    /// Lets a program run at the tracepoint that it was loaded for, until what is returned is dropped.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn tracing(self: &Arc<Holder>, program: BorrowedFd<'_>) -> io::Result<Held> {
        Ok(Held { id: self.ask(&Request::Tracing, Some(program))?, holder: Arc::clone(self) })
    }

    /// Whether it is there. When it is not, nothing is attached any more.
    pub fn is_running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    fn ask(&self, request: &Request, program: Option<BorrowedFd<'_>>) -> io::Result<u64> {
        let control = self.control.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let (ours, theirs) = pair()?;
        let descriptors: Vec<BorrowedFd<'_>> = [theirs.as_fd()].into_iter().chain(program).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let message = serde_json::to_vec(request)?;
        sendmsg(control, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        drop(theirs);
        let mut answer = vec![0; ANSWER];
        let (length, _) = recv(&ours, &mut answer[..], RecvFlags::empty())?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process that holds the probes has ended"));
        }
        match serde_json::from_slice::<Answer>(&answer[..length])? {
            Ok(id) => Ok(id),
            Err((Some(number), _)) => Err(io::Error::from_raw_os_error(number)),
            Err((None, words)) => Err(io::Error::other(words)),
        }
    }
}

impl Drop for Holder {
    /// Waits until all is detached.
    fn drop(&mut self) {
        drop(self.control.take());
        if let Err(e) = lock(&self.child).wait() {
            log::warn!("the process that holds the probes could not be waited for: {e}");
        }
    }
}

/// What is attached; dropped, it is not.
pub struct Held {
    holder: Arc<Holder>,
    id: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        // A child that has ended has detached everything.
        if let Err(e) = self.holder.ask(&Request::Release { id: self.id }, None) {
            log::debug!("not detached one by one: {e}");
        }
    }
}

/// Links, each with the perf events that it is on, by number.
#[derive(Default)]
struct Links {
    last: u64,
    by_id: HashMap<u64, Vec<Vec<OwnedFd>>>,
}

impl Links {
    /// Keeps them, and returns their number.
    fn hold(&mut self, links: Vec<Vec<OwnedFd>>) -> u64 {
        self.last += 1;
        self.by_id.insert(self.last, links);
        self.last
    }
}

/// The child's whole life: does what its parent asks until that has ended, then detaches everything.
///
/// # Errors
/// Its standard input is not its parent's socket.
pub fn serve() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: ignoring a signal runs no code of ours. They are for the parent, which then closes the socket.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: the name is a live string.
    unsafe { libc::prctl(libc::PR_SET_NAME, NAME.as_ptr()) };
    // While it waits for a CPU the target pays for probes that are no longer wanted. Not everybody may do this.
    // SAFETY: a plain system call.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, PRIORITY) };
    let stdin = io::stdin();
    let links = Mutex::new(Links::default());
    let mut limited = false;
    thread::scope(|scope| {
        let links = &links;
        // Closing a link takes a while: others need not wait for it.
        while let Some((request, answer, program)) = receive(stdin.as_fd())? {
            if let Request::Attach { mechanism, .. } = &request
                && !limited
            {
                // Perf-event uprobes take more than CAP_PERFMON.
                let admin = *mechanism == Mechanism::PerfEvents || !clocks_without_admin();
                capability::keep_only(|_| true, admin)?;
                limited = true;
            }
            scope.spawn(move || reply(&answer, perform(request, program, links)));
        }
        Ok::<(), io::Error>(())
    })?;
    let links = links.into_inner().unwrap_or_else(PoisonError::into_inner);
    close(links.by_id.into_values().flatten());
    Ok(())
}

/// Whether a CPU's clock can be opened without CAP_SYS_ADMIN. CAP_PERFMON is enough for the kernel, but not where
/// `kernel.perf_event_paranoid` is 3, as Debian's has it. A thread tries, since capabilities are each thread's own.
fn clocks_without_admin() -> bool {
    const PERIOD_NS: u64 = 1_000_000_000;
    let tried = thread::spawn(|| {
        capability::keep_only(|_| true, false)?;
        perf::cpu_clock(rustix::thread::sched_getcpu() as u32, PERIOD_NS)
    });
    tried.join().is_ok_and(|clock| clock.is_ok())
}

/// The next request; `None` when the parent has ended.
fn receive(control: BorrowedFd<'_>) -> io::Result<Option<(Request, OwnedFd, Option<OwnedFd>)>> {
    let mut message = vec![0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(control, &mut [IoSliceMut::new(&mut message)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let answer = descriptors.next().ok_or(io::ErrorKind::InvalidData)?;
    let program = descriptors.next();
    drop(descriptors);
    Ok(Some((serde_json::from_slice(&message[..received.bytes])?, answer, program)))
}

fn perform(request: Request, program: Option<OwnedFd>, links: &Mutex<Links>) -> io::Result<u64> {
    match request {
        Request::Attach { path, mechanism, pid, sites } => {
            let program = program.ok_or(io::ErrorKind::InvalidData)?;
            let attached = attach(program.as_fd(), &CString::new(path)?, mechanism, pid, &sites)?;
            Ok(lock(links).hold(attached))
        }
        Request::Clock { cpu, period_ns } => {
            let program = program.ok_or(io::ErrorKind::InvalidData)?;
            let event = perf::cpu_clock(cpu, period_ns)?;
            Ok(lock(links).hold(vec![bpf::attach_perf_event(program.as_fd(), event, 0)?]))
        }
        Request::Tracing => {
            let program = program.ok_or(io::ErrorKind::InvalidData)?;
            Ok(lock(links).hold(vec![vec![bpf::link_tracing(program.as_fd())?]]))
        }
        Request::Release { id } => {
            let released = lock(links).by_id.remove(&id);
            close(released.into_iter().flatten());
            Ok(id)
        }
    }
}

fn attach(
    program: BorrowedFd<'_>,
    path: &CString,
    mechanism: Mechanism,
    pid: Option<u32>,
    sites: &[Site],
) -> io::Result<Vec<Vec<OwnedFd>>> {
    match mechanism {
        Mechanism::Multi => {
            let (offsets, cookies): (Vec<u64>, Vec<u64>) = sites.iter().map(|s| (s.offset, s.cookie)).unzip();
            Ok(vec![vec![bpf::link_uprobe_multi(program, path, &offsets, &cookies, pid)?]])
        }
        Mechanism::PerfEvents => {
            let attach =
                |site: &Site| bpf::attach_perf_event(program, perf::uprobe(path, site.offset, pid)?, site.cookie);
            sites.iter().map(attach).collect()
        }
    }
}

/// Closing one waits for every CPU to have left the probe, some 40 ms: they wait together.
pub(super) fn close(links: impl Iterator<Item = Vec<OwnedFd>>) {
    thread::scope(|scope| {
        for link in links {
            scope.spawn(|| drop(link));
        }
    });
}

fn reply(socket: &OwnedFd, done: io::Result<u64>) {
    let answer: Answer = done.map_err(|e| (e.raw_os_error(), e.to_string()));
    // Whoever asked may have ended.
    if let Ok(answer) = serde_json::to_vec(&answer) {
        let _ = send(socket, &answer, SendFlags::NOSIGNAL);
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the longest request fits into a message.
    #[test]
    fn requests_fit() {
        let site = Site { offset: u64::MAX, cookie: u64::MAX };
        let path = vec![b'/'; libc::PATH_MAX as usize];
        let sites = vec![site; MOST_SITES];
        let request = Request::Attach { path, mechanism: Mechanism::PerfEvents, pid: Some(u32::MAX), sites };
        assert!(serde_json::to_vec(&request).expect("numbers").len() <= MESSAGE);
    }

    /// Check that descriptors and words arrive, and that the end of the other side is seen.
    #[test]
    fn requests_arrive() {
        let (ours, theirs) = pair().expect("a pair of sockets");
        let child = Command::new("true").spawn().expect("a child");
        let holder = Holder { control: Some(ours), child: Mutex::new(child) };
        thread::scope(|scope| {
            let asked = scope.spawn(|| holder.ask(&Request::Release { id: 7 }, None));
            let (request, answer, program) = receive(theirs.as_fd()).expect("a message").expect("a request");
            assert!(matches!(request, Request::Release { id: 7 }));
            assert!(program.is_none());
            reply(&answer, Err(io::Error::from_raw_os_error(libc::EPERM)));
            let answered = asked.join().expect("no panic").expect_err("refused");
            assert_eq!(answered.raw_os_error(), Some(libc::EPERM));
            // An answer that never comes is an error, too.
            let asked = scope.spawn(|| holder.ask(&Request::Release { id: 8 }, None));
            drop(receive(theirs.as_fd()).expect("a message"));
            let answered = asked.join().expect("no panic").expect_err("no answer");
            assert_eq!(answered.kind(), io::ErrorKind::BrokenPipe);
        });
        drop(holder);
        assert!(receive(theirs.as_fd()).expect("an end").is_none());
    }
}
