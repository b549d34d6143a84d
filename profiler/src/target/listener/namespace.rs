//! The sockets of a network namespace, as sock_diag lists them: one answer for all processes in it. Never whose they are.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::rc::{Rc, Weak};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use super::{Address, ListenerError, ListeningSocket, unix};

/// Largest datagram of a dump: the kernel fills 32 KiB at most.
const RECEIVE_BYTES: usize = 64 << 10;

/// The network namespaces in which somebody's sockets are listed.
#[derive(Default)]
pub struct Namespaces(HashMap<u64, Weak<RefCell<Namespace>>>);

impl Namespaces {
    /// That of a process.
    ///
    /// # Errors
    /// It cannot be entered, or the kernel has no sock_diag.
    pub(super) fn of(&mut self, pid: u32) -> Result<Rc<RefCell<Namespace>>, ListenerError> {
        let failed = |source| ListenerError::Namespace { pid, source };
        let inode = inode(&format!("/proc/{pid}/ns/net")).map_err(failed)?;
        if let Some(open) = self.0.get(&inode).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let own = self::inode("/proc/self/ns/net").is_ok_and(|own| own == inode);
        let socket = if own { netlink() } else { netlink_in_namespace_of(pid)? };
        let socket = socket.map_err(ListenerError::Netlink)?;
        let namespace = Namespace { socket, listing: Listing::default(), unread: Default::default() };
        let namespace = Rc::new(RefCell::new(namespace));
        self.0.retain(|_, open| open.strong_count() > 0);
        self.0.insert(inode, Rc::downgrade(&namespace));
        Ok(namespace)
    }
}

/// Listening sockets at one time.
#[derive(Default)]
pub(super) struct Listing {
    /// As of this time or later.
    taken_ns: u64,
    /// All of them.
    pub sockets: Vec<ListeningSocket>,
    /// Their inodes.
    pub inodes: HashSet<u32>,
    /// Why unix sockets are not among them, where they are not.
    pub without_unix: Option<String>,
}

/// One network namespace.
pub(super) struct Namespace {
    socket: Socket,
    listing: Listing,
    /// Connections in which something waits to be read, and as of when.
    unread: (u64, HashSet<u64>),
}

impl Namespace {
    /// Its listening sockets, as of `since_ns` or later.
    pub fn listing(&mut self, since_ns: u64) -> io::Result<&Listing> {
        if self.listing.taken_ns < since_ns {
            self.listing = self.list(since_ns)?;
        }
        Ok(&self.listing)
    }

    fn list(&mut self, taken_ns: u64) -> io::Result<Listing> {
        let mut sockets = self.dump(inet_request(AF_INET, StateFlags::LISTEN))?;
        sockets.extend(self.dump(inet_request(AF_INET6, StateFlags::LISTEN))?);
        // A kernel may be built without this one.
        let unix = self.dump(unix::request(unix::LISTEN));
        let without_unix =
            unix.as_ref().err().map(|e| format!("the kernel does not list unix sockets (unix_diag): {e}"));
        sockets.extend(unix.unwrap_or_default());
        let inodes = sockets.iter().map(|socket| socket.inode).collect();
        Ok(Listing { taken_ns, sockets, inodes, without_unix })
    }

    /// Open unix connections.
    pub fn unix_connections(&mut self) -> io::Result<Vec<ListeningSocket>> {
        self.dump(unix::request(unix::ESTABLISHED))
    }

    /// Cookies of open TCP connections in which something waits to be read, as of `since_ns` or later.
    pub fn unread(&mut self, since_ns: u64) -> io::Result<&HashSet<u64>> {
        if self.unread.0 < since_ns {
            let unread = self.tcp_connections()?.iter().filter(|s| s.length > 0).map(|s| s.cookie).collect();
            self.unread = (since_ns, unread);
        }
        Ok(&self.unread.1)
    }

    /// Open TCP connections.
    pub fn tcp_connections(&mut self) -> io::Result<Vec<ListeningSocket>> {
        let open = StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT;
        let mut sockets = self.dump(inet_request(AF_INET, open.clone()))?;
        sockets.extend(self.dump(inet_request(AF_INET6, open))?);
        Ok(sockets)
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

fn inode(path: &str) -> io::Result<u64> {
    fs::metadata(path).map(|metadata| metadata.ino())
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
