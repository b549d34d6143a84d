//! Getting a page, and nothing more of HTTP.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::wait;

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Gets a page over a connection of its own.
///
/// # Errors
/// There is no answer, or none that can be understood.
pub fn get(address: SocketAddr, path: &str) -> io::Result<Response> {
    get_with(address, path, "")
}

/// The same, with more lines in the head of the request, each with its end.
///
/// # Errors
/// As for [`get`].
pub fn get_with(address: SocketAddr, path: &str, head: &str) -> io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, wait::LIMIT)?;
    stream.set_read_timeout(Some(wait::LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{head}\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
}

/// A connection that is asked one thing after another.
pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    begun: bool,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, wait::LIMIT)?;
        stream.set_read_timeout(Some(wait::LIMIT))?;
        Ok(Connection { stream, address, begun: false })
    }

    /// Asks, and waits for nothing.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn ask(&mut self, path: &str) -> io::Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        self.begun = false;
        self.stream.write_all(request.as_bytes())
    }

    /// The answer to what was asked.
    ///
    /// # Errors
    /// The connection ends before it.
    pub fn answer(&mut self) -> io::Result<Response> {
        let mut text = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let length = self.stream.read(&mut piece)?;
            self.begun |= length > 0;
            text.extend_from_slice(&piece[..length]);
            match parse(&String::from_utf8_lossy(&text)) {
                Some(response) => return Ok(response),
                None if length == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => {}
            }
        }
    }

    /// Whether anything has come of the answer to what was last asked.
    pub fn has_begun(&self) -> bool {
        self.begun
    }
}

fn parse(text: &str) -> Option<Response> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()?;
    (body.len() == length).then(|| Response { status, headers, body: body.to_owned() })
}
