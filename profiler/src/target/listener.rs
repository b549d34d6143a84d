//! The listening sockets of a process: which they are from /proc, what they hold from sock_diag (what `ss -ltn` shows).
//! Never how long connections wait in them.

mod namespace;
mod unix;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use namespace::Namespace;
pub use namespace::Namespaces;

/// A socket that was not the target's may become it (passed on, or inherited): such are looked for this often.
const FOREIGN_RECHECK: Duration = Duration::from_secs(10);

/// Where a socket listens: ordered as they are shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A path, or an abstract name with `@` before it.
    Unix(String),
}

impl Address {
    /// The port; a unix socket has none.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(name) => write!(f, "unix:{name}"),
        }
    }
}

/// One listening socket, as the kernel shows it just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListeningSocket {
    /// What the kernel half knows it by.
    pub cookie: u64,
    /// Inode of the socket.
    pub inode: u32,
    /// Local address.
    pub address: Address,
    /// Connections that wait: Recv-Q.
    pub length: u32,
    /// Most connections that may wait: Send-Q.
    pub limit: u32,
    /// Connections that were dropped here since it listens; `None` where the kernel does not tell, or drops none.
    pub drops: Option<u32>,
}

/// Why the sockets of a process cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// Its network namespace cannot be entered.
    #[error(
        "failed to enter the network namespace of process {pid}: {source}; CAP_SYS_ADMIN is needed for another namespace's sockets"
    )]
    Namespace {
        /// Which process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// Its open files cannot be listed.
    #[error(
        "failed to list the open files of process {pid}: {source}; CAP_DAC_READ_SEARCH is needed for another user's"
    )]
    Files {
        /// Which process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not answer sock_diag.
    #[error("failed to ask the kernel for listening sockets (sock_diag): {0}")]
    Netlink(#[source] io::Error),
}

/// The listening sockets of one process, among those of its own network namespace.
pub struct Listeners {
    pid: u32,
    namespace: Rc<RefCell<Namespace>>,
    /// Whether the socket with this inode is the process's.
    owned: HashMap<u32, bool>,
    checked: Instant,
    /// Ports and names of those that were listed last.
    ports: HashSet<u16>,
    names: HashSet<Address>,
    /// Why unix sockets are not listed, where they are not.
    without_unix: Option<String>,
}

impl Listeners {
    /// Opens a sock_diag socket in the process's network namespace, unless one is open.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel has no sock_diag.
    pub fn open(pid: u32, namespaces: &mut Namespaces) -> Result<Listeners, ListenerError> {
        Ok(Listeners {
            pid,
            namespace: namespaces.of(pid)?,
            owned: HashMap::new(),
            checked: Instant::now(),
            ports: HashSet::new(),
            names: HashSet::new(),
            without_unix: None,
        })
    }

    /// The process's listening sockets, in the order of address and inode, as they were at `since_ns` (CLOCK_MONOTONIC) or
    /// later: processes of one namespace share what the kernel answered.
    ///
    /// # Errors
    /// The kernel does not answer, or the process's files cannot be listed.
    pub fn list(&mut self, since_ns: u64) -> Result<Vec<ListeningSocket>, ListenerError> {
        let namespace = Rc::clone(&self.namespace);
        let mut namespace = namespace.borrow_mut();
        let listing = namespace.listing(since_ns).map_err(ListenerError::Netlink)?;
        self.without_unix.clone_from(&listing.without_unix);
        self.update_owned(&listing.inodes)?;
        let mine = |socket: &&ListeningSocket| self.owned.get(&socket.inode) == Some(&true);
        let mut sockets: Vec<ListeningSocket> = listing.sockets.iter().filter(mine).cloned().collect();
        self.ports = sockets.iter().filter_map(|socket| socket.address.port()).collect();
        let unix = sockets.iter().map(|socket| &socket.address).filter(|address| address.port().is_none());
        self.names = unix.cloned().collect();
        sockets.sort_by(|a, b| (&a.address, a.inode).cmp(&(&b.address, b.inode)));
        Ok(sockets)
    }

    /// In how many of these TCP connections, by cookie, something waits to be read, as of `since_ns` (CLOCK_MONOTONIC) or later.
    ///
    /// # Errors
    /// As for [`Listeners::list`].
    pub fn unread(&mut self, cookies: &HashSet<u64>, since_ns: u64) -> Result<u64, ListenerError> {
        // Most servers read what has come at once: then nobody is asked.
        if cookies.is_empty() {
            return Ok(0);
        }
        let mut namespace = self.namespace.borrow_mut();
        let unread = namespace.unread(since_ns).map_err(ListenerError::Netlink)?;
        Ok(cookies.intersection(unread).count() as u64)
    }

    /// The open unix connections that were accepted on a listening socket that was listed last: their cookies, and whether
    /// something waits in them to be read.
    ///
    /// # Errors
    /// As for [`Listeners::list`].
    pub fn unix_connections(&mut self) -> Result<Vec<(u64, bool)>, ListenerError> {
        if self.names.is_empty() {
            return Ok(Vec::new());
        }
        // They have the name of the listening socket that they were accepted on, and one that was not yet has no inode.
        let sockets = self.namespace.borrow_mut().unix_connections().map_err(ListenerError::Netlink)?;
        let accepted = |s: &&ListeningSocket| s.inode != 0 && self.names.contains(&s.address);
        Ok(sockets.iter().filter(accepted).map(|socket| (socket.cookie, socket.length > 0)).collect())
    }

    /// Cookies of the open TCP connections that the processes accepted on a listening socket that was listed last.
    ///
    /// # Errors
    /// As for [`Listeners::list`].
    pub fn tcp_connections(&mut self, pids: &[u32]) -> Result<Vec<u64>, ListenerError> {
        let mut mine = HashSet::new();
        for &pid in pids {
            // A child that has ended has no connections.
            mine.extend(socket_inodes(pid).unwrap_or_default());
        }
        let sockets = self.namespace.borrow_mut().tcp_connections().map_err(ListenerError::Netlink)?;
        let at_port = |s: &ListeningSocket| s.address.port().is_some_and(|port| self.ports.contains(&port));
        let accepted = |s: &&ListeningSocket| mine.contains(&s.inode) && at_port(s);
        Ok(sockets.iter().filter(accepted).map(|socket| socket.cookie).collect())
    }

    /// Why unix sockets were not among those that were listed last; `None` when they were.
    pub fn without_unix(&self) -> Option<&str> {
        self.without_unix.as_deref()
    }

    /// The process's open files are listed only when a socket is new, since a server may have many of them.
    fn update_owned(&mut self, inodes: &HashSet<u32>) -> Result<(), ListenerError> {
        self.owned.retain(|inode, _| inodes.contains(inode));
        if self.checked.elapsed() > FOREIGN_RECHECK {
            self.owned.retain(|_, mine| *mine);
        }
        if self.owned.len() == inodes.len() {
            return Ok(());
        }
        self.checked = Instant::now();
        let mine = socket_inodes(self.pid).map_err(|source| ListenerError::Files { pid: self.pid, source })?;
        self.owned = inodes.iter().map(|inode| (*inode, mine.contains(inode))).collect();
        Ok(())
    }
}

/// Whether a process has an io_uring: it may accept by it.
pub fn has_io_uring(pid: u32) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == "anon_inode:[io_uring]"))
}

fn socket_inodes(pid: u32) -> io::Result<HashSet<u32>> {
    let mut inodes = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor that was closed meanwhile is no error.
        let Ok(link) = entry.and_then(|entry| fs::read_link(entry.path())) else { continue };
        let inode: Option<u32> =
            link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inodes.extend(inode);
    }
    Ok(inodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn open() -> Listeners {
        Listeners::open(std::process::id(), &mut Namespaces::default()).unwrap()
    }

    fn of_this_process(listener: &TcpListener) -> ListeningSocket {
        let address = Address::Tcp(listener.local_addr().unwrap());
        let sockets = open().list(1).unwrap();
        sockets.into_iter().find(|s| s.address == address).expect("the listener is listed")
    }

    #[test]
    fn a_queue_is_as_long_as_the_connections_in_it() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            assert_eq!(of_this_process(&listener).length, 0);
            let _clients: Vec<_> =
                (0..3).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
            let socket = of_this_process(&listener);
            assert_eq!(socket.length, 3);
            assert!(socket.limit >= 3 && socket.cookie != 0 && socket.drops.is_some(), "{socket:?}");
        }
    }

    #[test]
    fn a_listener_that_was_opened_later_is_found() {
        let mut listeners = open();
        listeners.list(1).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        assert!(listeners.list(2).unwrap().iter().any(|s| s.address == address));
        drop(listener);
        assert!(!listeners.list(3).unwrap().iter().any(|s| s.address == address));
    }

    /// Check that what the kernel answered is asked for once as long as it is new enough, and again when it is not.
    #[test]
    fn processes_of_one_namespace_share_an_answer() {
        let mut namespaces = Namespaces::default();
        let mut first = Listeners::open(std::process::id(), &mut namespaces).unwrap();
        let mut second = Listeners::open(std::process::id(), &mut namespaces).unwrap();
        first.list(5).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let has = |sockets: Vec<ListeningSocket>| sockets.iter().any(|socket| socket.address == address);
        assert!(!has(second.list(5).unwrap()));
        assert!(has(second.list(6).unwrap()));
        assert!(has(first.list(5).unwrap()));
    }
}
