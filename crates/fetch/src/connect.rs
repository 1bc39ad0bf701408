//! Connections: names, racing addresses, proxies, TLS, and the HTTP handshake.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use url::Url;

use crate::error::{Error, Kind, Result, describe};
use crate::job::Options;
use crate::proxy::{Proxy, ProxyKind};
use crate::socks::{Socks, Target};
use crate::tls;

/// Requests without a body are all that downloads need.
pub type NoBody = Empty<Bytes>;

/// How long the next address waits for the one before (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);
/// Bytes that a proxy's answer to CONNECT may have.
const LONGEST_ANSWER: usize = 16 * 1024;
/// HTTP/2 flow control: per stream and per connection. What arrives is written at once, so these bound
/// what is under way rather than what is held; one file alone may have nearly all of it.
const STREAM_WINDOW: u32 = 6 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// A connection that can take requests; hyper's driver runs as a task beside it.
pub enum Connection {
    /// One request at a time.
    Http1(http1::SendRequest<NoBody>),
    /// Many; a clone is another handle to the same connection.
    Http2(http2::SendRequest<NoBody>),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type AnyIo = Pin<Box<dyn Io>>;

/// Opens connections. One per run.
pub struct Connector {
    tls: OnceCell<TlsConnector>,
    /// Largest read, in bytes.
    read_buffer: usize,
}

impl Connector {
    /// For a run of that many transfers at a time, which share a bounded memory for their buffers.
    pub fn new(transfers: usize) -> Self {
        // A tenth of the CPU time goes from 64 KiB to 128, as much again to 512.
        let read_buffer = ((2 << 20) / transfers.max(1)).clamp(64 << 10, 512 << 10);
        Self { tls: OnceCell::new(), read_buffer }
    }

    /// Connect to the URL's server, or to `proxy` for it.
    pub async fn connect(
        &self,
        url: &Url,
        proxy: Option<&Proxy>,
        options: &Options,
    ) -> Result<Connection> {
        let limit = options.connect_timeout;
        // In a box, as what is rare and large is everywhere here: a future is copied whole when it is
        // first awaited, and every request's would have room for this one.
        let open = Box::pin(self.open(url, proxy, options));
        timeout(limit, open).await.unwrap_or_else(|_| {
            let text = format!("no connection within {} s", limit.as_secs_f64());
            Err(Error::new(Kind::Timeout, text))
        })
    }

    async fn open(
        &self,
        url: &Url,
        proxy: Option<&Proxy>,
        options: &Options,
    ) -> Result<Connection> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port_or_known_default().unwrap_or(80);
        let secure = url.scheme() == "https";
        let Some(proxy) = proxy else {
            let tcp = tcp(host, port).await?;
            if !secure {
                return self.http1(tcp).await;
            }
            return self.secure(tcp, host, options).await;
        };
        if let ProxyKind::Socks(socks) = proxy.kind {
            let tcp = through_socks(socks, proxy, host, port).await?;
            return if secure {
                self.secure(tcp, host, options).await
            } else {
                self.http1(tcp).await
            };
        }
        let tcp = to_proxy(proxy).await?;
        let mut io: AnyIo = if proxy.kind == ProxyKind::Https {
            // HTTP/2 is not for us to speak with a proxy.
            Box::pin(handshake(self.tls(options).await?, tcp, &proxy.host, true).await?)
        } else {
            Box::pin(tcp)
        };
        if !secure {
            return self.http1(io).await;
        }
        tunnel(&mut io, url, port, proxy).await?;
        self.secure(io, host, options).await
    }

    async fn tls(&self, options: &Options) -> Result<&TlsConnector> {
        self.tls.get_or_try_init(|| async { tls::connector(options) }).await
    }

    async fn secure<T>(&self, io: T, host: &str, options: &Options) -> Result<Connection>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stream = handshake(self.tls(options).await?, io, host, false).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return self.http1(stream).await;
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| from_hyper("the HTTP/2 handshake failed", &error))?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Connection::Http2(sender))
    }

    async fn http1<T>(&self, io: T) -> Result<Connection>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(self.read_buffer)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| from_hyper("the HTTP handshake failed", &error))?;
        // Its errors come to the request that they hit as well.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Connection::Http1(sender))
    }
}

async fn handshake<T>(
    connector: &TlsConnector,
    io: T,
    host: &str,
    only_http1: bool,
) -> Result<tokio_rustls::client::TlsStream<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::new(Kind::Input, format!("{host:?} is no name for TLS")))?;
    let connected = if only_http1 {
        connector.with_alpn(vec![b"http/1.1".to_vec()]).connect(name, io).await
    } else {
        connector.connect(name, io).await
    };
    connected.map_err(|error| match error.kind() {
        // rustls's own errors; what the socket says may pass.
        io::ErrorKind::InvalidData => Error::new(Kind::Tls, format!("TLS: {}", describe(&error))),
        _ => Error::connection("TLS", &error),
    })
}

/// Connect to the first address that answers, each with a head start before the next.
async fn tcp(host: &str, port: u16) -> Result<TcpStream> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return one(SocketAddr::new(address, port)).await;
    }
    let mut attempts = JoinSet::new();
    let mut last = Error::new(Kind::Name, format!("{host} has no address"));
    let mut addresses = look_up(host, port).await?.into_iter();
    let mut next = addresses.next();
    loop {
        if let Some(address) = next.take() {
            attempts.spawn(one(address));
        }
        tokio::select! {
            outcome = attempts.join_next() => match outcome {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => {
                    last = error;
                    next = addresses.next();
                }
                Some(Err(_)) => {}
                None => return Err(last),
            },
            () = sleep(HEAD_START), if !addresses.as_slice().is_empty() => next = addresses.next(),
        }
    }
}

/// The two families in turn, beginning with the first address's.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut mixed = Vec::with_capacity(preferred.len() + other.len());
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    loop {
        let before = mixed.len();
        mixed.extend(preferred.next());
        mixed.extend(other.next());
        if mixed.len() == before {
            return mixed;
        }
    }
}

async fn one(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| Error::connection(format_args!("cannot connect to {address}"), &error))?;
    // A request leaves in one write; if the option is refused, nothing is lost.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn to_proxy(proxy: &Proxy) -> Result<TcpStream> {
    tcp(&proxy.host, proxy.port)
        .await
        .map_err(|error| Error { text: format!("the proxy: {}", error.text), ..error })
}

/// A connection to a server that a SOCKS proxy makes; to its first address that the proxy reaches, if
/// names are looked up here.
async fn through_socks(socks: Socks, proxy: &Proxy, host: &str, port: u16) -> Result<TcpStream> {
    let known = host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    let targets: Vec<Target<'_>> = match known {
        Some(address) => vec![Target::Address(address)],
        None if socks.looks_up_here() => look_up(host, port)
            .await?
            .into_iter()
            .filter(|address| socks.knows(address))
            .map(Target::Address)
            .collect(),
        None => vec![Target::Name(host, port)],
    };
    let mut last = Error::new(Kind::Name, format!("{host} has no address that SOCKS 4 knows"));
    for target in targets {
        let mut tcp = to_proxy(proxy).await?;
        match socks.connect(&mut tcp, target, proxy.credentials.as_ref()).await {
            Ok(()) => return Ok(tcp),
            Err(error) if error.kind == Kind::Connection => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let found = lookup_host((host, port)).await.map_err(|error| {
        Error::new(Kind::Name, format!("no address for {host}: {}", describe(&error)))
    })?;
    Ok(interleaved(found.collect()))
}

/// Ask a proxy for a connection to the URL's server.
async fn tunnel(io: &mut AnyIo, url: &Url, port: u16, proxy: &Proxy) -> Result<()> {
    let broken = |error: io::Error| Error::connection("the proxy", &error);
    let authority = format!("{}:{port}", url.host_str().unwrap_or_default());
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(value) = proxy.authorization() {
        request.push_str(&format!("Proxy-Authorization: {value}\r\n"));
    }
    request.push_str("\r\n");
    io.write_all(request.as_bytes()).await.map_err(broken)?;
    io.flush().await.map_err(broken)?;
    // Byte by byte, since what follows the answer's head belongs to TLS. A TLS server does not speak
    // first, so little is lost.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = io.read_u8().await.map_err(broken)?;
        answer.push(byte);
        if answer.len() > LONGEST_ANSWER {
            return Err(Error::new(Kind::Protocol, "the proxy's answer has no end"));
        }
    }
    let line = String::from_utf8_lossy(&answer);
    let line = line.lines().next().unwrap_or_default();
    match line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()) {
        Some(200..=299) if line.starts_with("HTTP/1.") => Ok(()),
        Some(status) if line.starts_with("HTTP/1.") => {
            let text = format!("the proxy refuses to connect: {}", line.trim());
            Err(Error::new(Kind::Status(status), text))
        }
        _ => Err(Error::new(Kind::Protocol, "the proxy's answer is not HTTP")),
    }
}

/// An error of hyper's, by what lies below it.
pub fn from_hyper(doing: &str, error: &hyper::Error) -> Error {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::InvalidData => Error::new(Kind::Protocol, format!("{doing}: {io}")),
                _ => Error::connection(doing, io),
            };
        }
        source = cause.source();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        let text = format!("{doing}: the server closed the connection too early");
        return Error::new(Kind::Connection, text);
    }
    let mut text = format!("{doing}: {error}");
    if let Some(cause) = std::error::Error::source(error) {
        text.push_str(&format!(": {cause}"));
    }
    Error::new(Kind::Protocol, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let given = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        let mixed = parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(interleaved(given), mixed);
        assert!(interleaved(Vec::new()).is_empty());
    }
}
