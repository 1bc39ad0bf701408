//! The bare servers: one thread, one epoll, no Python. What they cost per request is what the kernel and the
//! protocol cost; a loop's distance from them is what the loop adds.

use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use mio::event::Source;
use mio::net::{TcpListener, UdpSocket, UnixListener};
use mio::{Events, Interest, Poll, Token};
use rustls::{ServerConfig, ServerConnection};

use crate::args::{BareOptions, Transport};
use crate::wire::{self, Socket, Wire};

const LISTENER: Token = Token(usize::MAX - 1);
const BODY_10K: usize = 10 * 1024;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Socket::Unix(stream)),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(listener) => listener,
            Self::Unix(listener) => listener,
        }
    }
}

struct Peer {
    wire: Wire,
    /// What the socket did not take; nothing is read while it is not empty.
    unsent: Vec<u8>,
    /// The beginning of an HTTP request whose end has not come.
    pending: Vec<u8>,
}

struct Server {
    poll: Poll,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    http: Option<Http>,
}

/// Answers that are the same for every request, built once.
struct Http {
    plaintext: Vec<u8>,
    ten_kib: Vec<u8>,
}

/// Serves until the process is ended; prints where, as one line of JSON.
pub fn serve(options: &BareOptions) -> io::Result<()> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (listener, tls) = match options.transport {
        Transport::Udp => return serve_datagrams(local),
        Transport::Unix => {
            let path =
                options.path.as_deref().ok_or_else(|| io::Error::other("unix needs --path"))?;
            (Listener::Unix(UnixListener::bind(path)?), None)
        }
        Transport::Tls => {
            let directory =
                options.cert.as_deref().ok_or_else(|| io::Error::other("tls needs --cert"))?;
            (Listener::Tcp(TcpListener::bind(local)?), Some(tls_config(directory)?))
        }
        Transport::Tcp | Transport::Http => (Listener::Tcp(TcpListener::bind(local)?), None),
    };
    announce(&match (&listener, &options.path) {
        (Listener::Tcp(listener), _) => listener.local_addr()?.to_string(),
        (Listener::Unix(_), Some(path)) => path.display().to_string(),
        (Listener::Unix(_), None) => String::new(),
    })?;
    let http = (options.transport == Transport::Http).then(Http::new);
    Server {
        poll: Poll::new()?,
        peers: Vec::new(),
        free: Vec::new(),
        buffer: vec![0; 256 * 1024],
        http,
    }
    .run(listener, tls.as_ref())
}

fn tls_config(directory: &Path) -> io::Result<Arc<ServerConfig>> {
    wire::server_config(directory).map_err(io::Error::other)
}

fn announce(address: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{{\"address\": \"{address}\"}}")?;
    out.flush()
}

impl Http {
    fn new() -> Self {
        let answer = |body: &[u8]| {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), body].concat()
        };
        Self { plaintext: answer(b"Hello, World!"), ten_kib: answer(&[b'x'; BODY_10K]) }
    }

    /// Takes the complete requests from `pending` and gives their answers.
    fn answers(&self, pending: &mut Vec<u8>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut start = 0;
        while let Some(end) = pending[start..].windows(4).position(|window| window == b"\r\n\r\n") {
            let ten = pending[start..].starts_with(b"GET /10k");
            out.extend_from_slice(if ten { &self.ten_kib } else { &self.plaintext });
            start += end + 4;
        }
        pending.drain(..start);
        out
    }
}

impl Server {
    fn run(mut self, mut listener: Listener, tls: Option<&Arc<ServerConfig>>) -> io::Result<()> {
        self.poll.registry().register(listener.source(), LISTENER, Interest::READABLE)?;
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept(&listener, tls)?;
                    continue;
                }
                let index = event.token().0;
                let Some(peer) = self.peers.get_mut(index).and_then(Option::as_mut) else {
                    continue;
                };
                let outcome = match drain(peer, &self.poll, index) {
                    Ok(true) => {
                        converse(peer, &mut self.buffer, self.http.as_ref(), &self.poll, index)
                    }
                    Ok(false) => Ok(true),
                    Err(error) => Err(error),
                };
                if !matches!(outcome, Ok(true)) {
                    self.peers[index] = None;
                    self.free.push(index);
                }
            }
        }
    }

    fn accept(&mut self, listener: &Listener, tls: Option<&Arc<ServerConfig>>) -> io::Result<()> {
        loop {
            let mut socket = match listener.accept() {
                Ok(socket) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let index = self.free.pop().unwrap_or(self.peers.len());
            socket.register(self.poll.registry(), Token(index), Interest::READABLE)?;
            let wire = match tls {
                Some(config) => {
                    let mut session =
                        ServerConnection::new(config.clone()).map_err(io::Error::other)?;
                    session.set_buffer_limit(None);
                    Wire::tls(socket, session.into())
                }
                None => Wire::plain(socket),
            };
            let peer = Some(Peer { wire, unsent: Vec::new(), pending: Vec::new() });
            if index == self.peers.len() {
                self.peers.push(peer);
            } else {
                self.peers[index] = peer;
            }
        }
    }
}

/// Reads and answers until the socket is empty (Ok(true)), full, or closed (Ok(false)).
fn converse(
    peer: &mut Peer,
    buffer: &mut [u8],
    http: Option<&Http>,
    poll: &Poll,
    index: usize,
) -> io::Result<bool> {
    loop {
        let count = match peer.wire.recv(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let drained = count < buffer.len() && peer.wire.short_read_drains();
        let sent = match http {
            None => send(peer, &buffer[..count])?,
            Some(http) => {
                peer.pending.extend_from_slice(&buffer[..count]);
                let answers = http.answers(&mut peer.pending);
                send(peer, &answers)?
            }
        };
        if !sent {
            let both = Interest::READABLE | Interest::WRITABLE;
            peer.wire.socket.reregister(poll.registry(), Token(index), both)?;
            return Ok(true);
        }
        if drained {
            return Ok(true);
        }
    }
}

/// True if everything is gone; otherwise the rest waits in the peer.
fn send(peer: &mut Peer, data: &[u8]) -> io::Result<bool> {
    let mut sent = 0;
    while sent < data.len() {
        match peer.wire.send(&data[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                peer.unsent.extend_from_slice(&data[sent..]);
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    match peer.wire.flush() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    }
}

/// Sends what waited. True if nothing waits any more, so that reading may go on.
fn drain(peer: &mut Peer, poll: &Poll, index: usize) -> io::Result<bool> {
    if peer.unsent.is_empty() {
        return match peer.wire.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        };
    }
    let waiting = std::mem::take(&mut peer.unsent);
    if !send(peer, &waiting)? {
        return Ok(false);
    }
    peer.wire.socket.reregister(poll.registry(), Token(index), Interest::READABLE)?;
    Ok(true)
}

fn serve_datagrams(local: SocketAddr) -> io::Result<()> {
    let mut socket = UdpSocket::bind(local)?;
    crate::process::widen_buffers(&socket);
    announce(&socket.local_addr()?.to_string())?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(16);
    let mut buffer = vec![0; 64 * 1024];
    poll.registry().register(&mut socket, Token(0), Interest::READABLE)?;
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        loop {
            match socket.recv_from(&mut buffer) {
                // A full send buffer loses the answer, as UDP may; the load generator counts it.
                Ok((count, from)) => match socket.send_to(&buffer[..count], from) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                    _ => {}
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}
