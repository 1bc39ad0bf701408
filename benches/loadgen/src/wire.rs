//! One non-blocking connection, whatever its transport, for the client's side and the bare server's.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use mio::event::Source;
use mio::net::{TcpStream, UdpSocket, UnixStream};
use mio::{Interest, Registry, Token};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

/// Datagrams may be lost, streams may not; the reader has to know which it is.
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Connected, so that `recv` sees only the server's datagrams.
    Udp(UdpSocket),
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Udp(socket) => socket.recv(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(data),
            Self::Unix(stream) => stream.write(data),
            Self::Udp(socket) => socket.send(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Socket {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(source) => source.register(registry, token, interests),
            Self::Unix(source) => source.register(registry, token, interests),
            Self::Udp(source) => source.register(registry, token, interests),
        }
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(source) => source.reregister(registry, token, interests),
            Self::Unix(source) => source.reregister(registry, token, interests),
            Self::Udp(source) => source.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(source) => source.deregister(registry),
            Self::Unix(source) => source.deregister(registry),
            Self::Udp(source) => source.deregister(registry),
        }
    }
}

pub struct Wire {
    pub socket: Socket,
    tls: Option<Box<rustls::Connection>>,
}

impl Wire {
    pub fn plain(socket: Socket) -> Self {
        Self { socket, tls: None }
    }

    pub fn tls(socket: Socket, session: rustls::Connection) -> Self {
        Self { socket, tls: Some(Box::new(session)) }
    }

    /// Whether a read that did not fill its buffer has emptied the socket (epoll(7), edge-triggered): it saves
    /// the read that would only say EAGAIN.
    pub fn short_read_drains(&self) -> bool {
        self.tls.is_none() && !matches!(self.socket, Socket::Udp(_))
    }

    /// Plaintext bytes read; 0 at the end of the stream.
    pub fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &mut self.tls else {
            return self.socket.read(buffer);
        };
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if session.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            session.process_new_packets().map_err(io::Error::other)?;
            while session.wants_write() {
                session.write_tls(&mut self.socket)?;
            }
        }
    }

    /// Plaintext bytes taken. With TLS all of them are, and `flush` says when they are gone.
    pub fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.write(data),
            Some(session) => session.writer().write(data),
        }
    }

    /// Writes what TLS still holds; WouldBlock when the socket is full.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(session) = &mut self.tls {
            while session.wants_write() {
                session.write_tls(&mut self.socket)?;
            }
        }
        Ok(())
    }
}

/// A client session whose handshake is done over the still blocking socket.
pub fn client_session(
    config: &Arc<ClientConfig>,
    socket: &mut std::net::TcpStream,
) -> Result<rustls::Connection, String> {
    let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
    let mut session =
        ClientConnection::new(config.clone(), name).map_err(|error| error.to_string())?;
    session.set_buffer_limit(None);
    while session.is_handshaking() {
        session.complete_io(socket).map_err(|error| format!("TLS handshake: {error}"))?;
    }
    Ok(session.into())
}

pub fn client_config(ca: &Path) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let certificate =
        CertificateDer::from_pem_file(ca).map_err(|error| format!("{}: {error}", ca.display()))?;
    roots.add(certificate).map_err(|error| error.to_string())?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

pub fn server_config(directory: &Path) -> Result<Arc<ServerConfig>, String> {
    let certificate = CertificateDer::from_pem_file(directory.join("cert.pem"))
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem"))
        .map_err(|error| error.to_string())?;
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map(Arc::new)
        .map_err(|error| error.to_string())
}

/// A self-signed certificate for localhost, as `cert.pem` and `key.pem`: made for each run, so that no key is kept.
pub fn write_certificate(directory: &Path) -> Result<(), String> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| error.to_string())?;
    fs::write(directory.join("cert.pem"), made.cert.pem()).map_err(|error| error.to_string())?;
    fs::write(directory.join("key.pem"), made.signing_key.serialize_pem())
        .map_err(|error| error.to_string())
}
