//! Unix sockets, as sock_diag tells them (what `ss -xl` shows). Never which of them are a target's.

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::nlas::{Nla, UnixDiagName};
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponse};

use super::{Address, ListeningSocket};

pub(super) const LISTEN: StateFlags = StateFlags::LISTEN;
pub(super) const ESTABLISHED: StateFlags = StateFlags::ESTABLISHED;

/// Asks for all in a state, with their names and queues.
pub(super) fn request(state_flags: StateFlags) -> SockDiagMessage {
    SockDiagMessage::UnixRequest(UnixRequest {
        state_flags,
        inode: 0,
        show_flags: ShowFlags::NAME | ShowFlags::RQLEN,
        cookie: [0xff; 8],
    })
}

/// The socket; `None` where it has no name, or the kernel does not tell its queue.
pub(super) fn socket(response: &UnixResponse) -> Option<ListeningSocket> {
    let (length, limit) = response.nlas.iter().find_map(|nla| match nla {
        Nla::ReceiveQueueLength(length, limit) => Some((*length, *limit)),
        _ => None,
    })?;
    let name = response.nlas.iter().find_map(|nla| match nla {
        Nla::Name(name) => Some(name),
        _ => None,
    })?;
    Some(ListeningSocket {
        cookie: u64::from_ne_bytes(response.header.cookie),
        inode: response.header.inode,
        address: Address::Unix(shown(name)),
        length,
        limit,
        // Whoever connects to a full unix socket waits, or is told: nothing is dropped.
        drops: None,
    })
}

/// An abstract name with `@` before it, as `ss` writes it; zeros in it are `@` too.
fn shown(name: &UnixDiagName) -> String {
    match name {
        UnixDiagName::Pathname(path) => path.to_string_lossy().into_owned(),
        UnixDiagName::Abstract(bytes) => {
            let bytes: Vec<u8> = bytes.iter().map(|&byte| if byte == 0 { b'@' } else { byte }).collect();
            format!("@{}", String::from_utf8_lossy(&bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::super::{Listeners, Namespaces};

    fn open() -> Listeners {
        Listeners::open(std::process::id(), &mut Namespaces::default()).unwrap()
    }

    /// Check that a unix socket's queue is as long as the connections in it, whatever its name is.
    #[test]
    fn a_queue_is_as_long_as_the_connections_in_it() {
        let path = std::env::temp_dir().join(format!("profiler-listener-{}", std::process::id()));
        let path = path.to_str().unwrap();
        let name = format!("profiler listener {}", std::process::id());
        for (address, shown) in [
            (SocketAddr::from_pathname(path).unwrap(), format!("unix:{path}")),
            (SocketAddr::from_abstract_name(&name).unwrap(), format!("unix:@{name}")),
        ] {
            let listener = UnixListener::bind_addr(&address).unwrap();
            let _clients: Vec<_> = (0..3).map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
            let sockets = open().list(1).unwrap();
            let socket = sockets.iter().find(|s| s.address.to_string() == shown).expect("the listener is listed");
            assert_eq!((socket.length, socket.drops), (3, None));
            assert!(socket.limit >= 3 && socket.cookie != 0, "{socket:?}");
            drop(listener);
        }
        std::fs::remove_file(path).unwrap();
    }

    /// Check that accepted connections are told from those that wait, and those that were closed.
    #[test]
    fn accepted_connections_are_open_until_they_are_closed() {
        let name = format!("profiler connections {}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let _clients: Vec<_> = (0..3).map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
        let mut listeners = open();
        listeners.list(1).unwrap();
        assert_eq!(listeners.unix_connections().unwrap().len(), 0);
        let accepted: Vec<_> = (0..2).map(|_| listener.accept().unwrap()).collect();
        assert_eq!(listeners.unix_connections().unwrap().len(), 2);
        drop(accepted);
        assert_eq!(listeners.unix_connections().unwrap().len(), 0);
    }
}
