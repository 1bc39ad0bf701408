//! SOCKS proxies: version 5 (RFC 1928, with names and passwords by RFC 1929), 4, and 4a.
//!
//! A few messages, written here rather than taken from a crate: there is no state to keep, and what
//! follows them on the connection is the server's.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::error::{Error, Kind, Result};

/// Which SOCKS a proxy speaks, and who looks names up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socks {
    /// Version 4: names are looked up here, and only IPv4 addresses are known.
    V4,
    /// Version 4a: the proxy looks names up.
    V4a,
    /// Version 5, `socks5://`: names are looked up here.
    V5,
    /// Version 5, `socks5h://`: the proxy looks names up, and nobody here learns of them.
    V5h,
}

/// What a proxy is to connect to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// An address.
    Address(SocketAddr),
    /// A name, for the proxy to look up.
    Name(&'a str, u16),
}

impl Socks {
    /// By a proxy URL's scheme.
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        Some(match scheme {
            "socks4" => Self::V4,
            "socks4a" => Self::V4a,
            "socks5" => Self::V5,
            "socks5h" => Self::V5h,
            _ => return None,
        })
    }

    /// Whether names are looked up here.
    pub fn looks_up_here(self) -> bool {
        matches!(self, Self::V4 | Self::V5)
    }

    /// Whether it can be told to connect to that address.
    pub fn knows(self, address: &SocketAddr) -> bool {
        address.is_ipv4() || matches!(self, Self::V5 | Self::V5h)
    }

    /// Ask for a connection to `target`; what comes on `io` afterwards is the server's.
    pub async fn connect(
        self,
        io: &mut TcpStream,
        target: Target<'_>,
        credentials: Option<&(String, String)>,
    ) -> Result<()> {
        match self {
            Self::V4 | Self::V4a => version4(io, target, credentials).await,
            Self::V5 | Self::V5h => version5(io, target, credentials).await,
        }
    }
}

async fn version5(
    io: &mut TcpStream,
    target: Target<'_>,
    credentials: Option<&(String, String)>,
) -> Result<()> {
    // No authentication, and the password if there is one.
    let offered: &[u8] = if credentials.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] };
    send(io, offered).await?;
    match (receive(io).await?, credentials) {
        ([5, 0], _) => {}
        ([5, 2], Some((user, password))) => {
            let mut message = vec![1];
            push_short(&mut message, user, "the proxy's user name")?;
            push_short(&mut message, password, "the proxy's password")?;
            send(io, &message).await?;
            let [_, status] = receive(io).await?;
            if status != 0 {
                return Err(refused("the name or the password"));
            }
        }
        ([5, _], Some(_)) => return Err(refused("a name and a password")),
        ([5, _], None) => return Err(refused("to work without a name and a password")),
        _ => return Err(not_socks()),
    }
    let mut message = vec![5, 1, 0];
    let port = match target {
        Target::Name(name, port) => {
            message.push(3);
            push_short(&mut message, name, "the host's name")?;
            port
        }
        Target::Address(address) => {
            match address.ip() {
                IpAddr::V4(ip) => {
                    message.push(1);
                    message.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    message.push(4);
                    message.extend(ip.octets());
                }
            }
            address.port()
        }
    };
    message.extend(port.to_be_bytes());
    send(io, &message).await?;
    let [version, reply, _, kind] = receive(io).await?;
    if version != 5 {
        return Err(not_socks());
    }
    if reply != 0 {
        return Err(unconnected(reason(reply)));
    }
    // The address that the proxy has on its other side.
    match kind {
        1 => drop(receive::<6>(io).await?),
        4 => drop(receive::<18>(io).await?),
        3 => {
            let [length] = receive(io).await?;
            let mut name = vec![0; usize::from(length) + 2];
            io.read_exact(&mut name).await.map_err(|error| broken(&error))?;
        }
        _ => return Err(not_socks()),
    }
    Ok(())
}

async fn version4(
    io: &mut TcpStream,
    target: Target<'_>,
    credentials: Option<&(String, String)>,
) -> Result<()> {
    let (ip, port, name) = match target {
        Target::Name(name, port) => ([0, 0, 0, 1], port, Some(name)),
        Target::Address(SocketAddr::V4(address)) => (address.ip().octets(), address.port(), None),
        Target::Address(address) => {
            return Err(unconnected(&format!("SOCKS 4 does not know addresses as {address}")));
        }
    };
    let mut message = vec![4, 1];
    message.extend(port.to_be_bytes());
    message.extend(ip);
    push_ended(&mut message, credentials.map_or("", |(user, _)| user))?;
    if let Some(name) = name {
        push_ended(&mut message, name)?;
    }
    send(io, &message).await?;
    let [version, reply, ..] = receive::<8>(io).await?;
    match (version, reply) {
        (0, 90) => Ok(()),
        (0, 92 | 93) => Err(refused("the user name")),
        (0, _) => Err(unconnected("it was rejected, or failed")),
        _ => Err(not_socks()),
    }
}

/// A text with its length before it.
fn push_short(message: &mut Vec<u8>, text: &str, what: &str) -> Result<()> {
    let length = u8::try_from(text.len())
        .map_err(|_| Error::new(Kind::Input, format!("{what} is too long for SOCKS")))?;
    message.push(length);
    message.extend(text.bytes());
    Ok(())
}

/// A text with a zero after it.
fn push_ended(message: &mut Vec<u8>, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::new(Kind::Input, format!("{text:?} cannot be told a SOCKS proxy")));
    }
    message.extend(text.bytes());
    message.push(0);
    Ok(())
}

async fn send(io: &mut TcpStream, message: &[u8]) -> Result<()> {
    io.write_all(message).await.map_err(|error| broken(&error))
}

async fn receive<const SIZE: usize>(io: &mut TcpStream) -> Result<[u8; SIZE]> {
    let mut message = [0; SIZE];
    io.read_exact(&mut message).await.map_err(|error| broken(&error))?;
    Ok(message)
}

fn broken(error: &std::io::Error) -> Error {
    Error::connection("the proxy", error)
}

/// No further attempt will end differently.
fn refused(what: &str) -> Error {
    Error::new(Kind::Input, format!("the proxy refuses {what}"))
}

fn not_socks() -> Error {
    Error::new(Kind::Protocol, "the proxy's answer is not SOCKS")
}

fn unconnected(why: &str) -> Error {
    Error::new(Kind::Connection, format!("the proxy could not connect: {why}"))
}

/// RFC 1928, section 6.
fn reason(reply: u8) -> &'static str {
    match reply {
        1 => "it failed",
        2 => "its rules do not allow it",
        3 => "the network is unreachable",
        4 => "the host is unreachable",
        5 => "the connection was refused",
        6 => "the time to live has expired",
        7 => "it does not know the command",
        8 => "it does not know the kind of address",
        _ => "for an unknown reason",
    }
}
