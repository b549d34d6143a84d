//! The listening sockets of a process: which they are from /proc, what they hold from sock_diag (what `ss -ltn` shows).
//! Never how long connections wait in them.

mod unix;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

/// A socket that was not the target's may become it (passed on, or inherited): such are looked for this often.
const FOREIGN_RECHECK: Duration = Duration::from_secs(10);
/// Largest datagram of a dump: the kernel fills 32 KiB at most.
const RECEIVE_BYTES: usize = 64 << 10;

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

/// Asks for the listening sockets of one process, in its own network namespace.
pub struct Listeners {
    pid: u32,
    socket: Socket,
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
    /// Opens a sock_diag socket in the process's network namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel has no sock_diag.
    pub fn open(pid: u32) -> Result<Listeners, ListenerError> {
        let socket = if same_namespace(pid) { netlink() } else { netlink_in_namespace_of(pid)? };
        let socket = socket.map_err(ListenerError::Netlink)?;
        Ok(Listeners {
            pid,
            socket,
            owned: HashMap::new(),
            checked: Instant::now(),
            ports: HashSet::new(),
            names: HashSet::new(),
            without_unix: None,
        })
    }

    /// The process's listening sockets now, in the order of address and inode.
    ///
    /// # Errors
    /// The kernel does not answer, or the process's files cannot be listed.
    pub fn list(&mut self) -> Result<Vec<ListeningSocket>, ListenerError> {
        let mut sockets = self.dump(inet_request(AF_INET, StateFlags::LISTEN)).map_err(ListenerError::Netlink)?;
        sockets.extend(self.dump(inet_request(AF_INET6, StateFlags::LISTEN)).map_err(ListenerError::Netlink)?);
        // A kernel may be built without this one.
        let unix = self.dump(unix::request(unix::LISTEN));
        self.without_unix =
            unix.as_ref().err().map(|e| format!("the kernel does not list unix sockets (unix_diag): {e}"));
        sockets.extend(unix.unwrap_or_default());
        self.update_owned(&sockets)?;
        sockets.retain(|socket| self.owned.get(&socket.inode) == Some(&true));
        self.ports = sockets.iter().filter_map(|socket| socket.address.port()).collect();
        let unix = sockets.iter().map(|socket| &socket.address).filter(|address| address.port().is_none());
        self.names = unix.cloned().collect();
        sockets.sort_by(|a, b| (&a.address, a.inode).cmp(&(&b.address, b.inode)));
        Ok(sockets)
    }

    /// Cookies of the open unix connections that were accepted on a listening socket that was listed last.
    ///
    /// # Errors
    /// As for [`Listeners::list`].
    pub fn unix_connections(&mut self) -> Result<Vec<u64>, ListenerError> {
        if self.names.is_empty() {
            return Ok(Vec::new());
        }
        // They have the name of the listening socket that they were accepted on, and one that was not yet has no inode.
        let sockets = self.dump(unix::request(unix::ESTABLISHED)).map_err(ListenerError::Netlink)?;
        let accepted = |s: &&ListeningSocket| s.inode != 0 && self.names.contains(&s.address);
        Ok(sockets.iter().filter(accepted).map(|socket| socket.cookie).collect())
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
        let mut cookies = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let open = StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT;
            let sockets = self.dump(inet_request(family, open)).map_err(ListenerError::Netlink)?;
            let at_port = |s: &ListeningSocket| s.address.port().is_some_and(|port| self.ports.contains(&port));
            let accepted = |s: &&ListeningSocket| mine.contains(&s.inode) && at_port(s);
            cookies.extend(sockets.iter().filter(accepted).map(|socket| socket.cookie));
        }
        Ok(cookies)
    }

    /// Why unix sockets were not among those that were listed last; `None` when they were.
    pub fn without_unix(&self) -> Option<&str> {
        self.without_unix.as_deref()
    }

    /// The process's open files are listed only when a socket is new, since a server may have many of them.
    fn update_owned(&mut self, sockets: &[ListeningSocket]) -> Result<(), ListenerError> {
        self.owned.retain(|inode, _| sockets.iter().any(|socket| socket.inode == *inode));
        if self.checked.elapsed() > FOREIGN_RECHECK {
            self.owned.retain(|_, mine| *mine);
        }
        if sockets.iter().all(|socket| self.owned.contains_key(&socket.inode)) {
            return Ok(());
        }
        self.checked = Instant::now();
        let mine = socket_inodes(self.pid).map_err(|source| ListenerError::Files { pid: self.pid, source })?;
        for socket in sockets {
            self.owned.insert(socket.inode, mine.contains(&socket.inode));
        }
        Ok(())
    }

    fn dump(&mut self, request: SockDiagMessage) -> io::Result<Vec<ListeningSocket>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut sockets = Vec::new();
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let received = self.socket.recv(&mut &mut buffer[..], 0)?;
            let mut rest = &buffer[..received];
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                        sockets.push(listening(&response));
                    }
                    NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(response)) => {
                        sockets.extend(unix::socket(&response));
                    }
                    NetlinkPayload::Done(_) => return Ok(sockets),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
                rest = rest.get(length.max(1)..).unwrap_or_default();
            }
        }
    }
}

fn inet_request(family: u8, states: StateFlags) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::SKMEMINFO,
        states,
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    })
}

fn listening(response: &InetResponse) -> ListeningSocket {
    let header = &response.header;
    ListeningSocket {
        cookie: u64::from_ne_bytes(header.socket_id.cookie),
        inode: header.inode,
        address: Address::Tcp(SocketAddr::new(header.socket_id.source_address, header.socket_id.source_port)),
        length: header.recv_queue,
        limit: header.send_queue,
        drops: response.nlas.iter().find_map(|nla| match nla {
            Nla::MemInfo(memory) => Some(memory.drops),
            _ => None,
        }),
    }
}

fn netlink() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

fn same_namespace(pid: u32) -> bool {
    let inode = |path: String| fs::metadata(path).map(|m| m.ino());
    matches!((inode(format!("/proc/{pid}/ns/net")), inode("/proc/self/ns/net".to_owned())), (Ok(a), Ok(b)) if a == b)
}

/// A socket belongs to the namespace in which it was made: a thread of its own enters it, makes the socket, and ends.
fn netlink_in_namespace_of(pid: u32) -> Result<io::Result<Socket>, ListenerError> {
    let failed = |source| ListenerError::Namespace { pid, source };
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
    let entered = std::thread::spawn(move || {
        // SAFETY: a live descriptor; only this thread changes its namespace.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(netlink())
    });
    entered.join().map_err(|_| failed(io::Error::other("the helper thread panicked")))?.map_err(failed)
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

    fn of_this_process(listener: &TcpListener) -> ListeningSocket {
        let address = Address::Tcp(listener.local_addr().unwrap());
        let sockets = Listeners::open(std::process::id()).unwrap().list().unwrap();
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
        let mut listeners = Listeners::open(std::process::id()).unwrap();
        listeners.list().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        assert!(listeners.list().unwrap().iter().any(|s| s.address == address));
        drop(listener);
        assert!(!listeners.list().unwrap().iter().any(|s| s.address == address));
    }
}
