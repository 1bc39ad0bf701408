//! The closed loop: every connection has exactly one request in flight; its answer starts the next.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Events, Interest, Poll, Token};

use crate::args::{LoadOptions, Transport};
use crate::exchange::Exchange;
use crate::process;
use crate::wire::{self, Socket, Wire};

/// A stream that answers nothing for this long has failed.
const STALL: Duration = Duration::from_secs(5);
/// A datagram that is not answered for this long is counted as lost and sent again.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(200);
const TURN: Duration = Duration::from_millis(20);
/// How long a server may tidy up after the connections were made before its memory is read.
const SETTLE: Duration = Duration::from_millis(300);

struct Connection {
    wire: Wire,
    exchange: Exchange,
    /// Bytes of the request that the wire has taken.
    sent: usize,
    started: Instant,
    in_flight: bool,
    waits_for_space: bool,
    alive: bool,
}

/// What is counted inside the measured window, and emptied at its start.
#[derive(Default)]
struct Tally {
    latencies: Vec<u32>,
    lost: u64,
}

struct Load<'a> {
    options: &'a LoadOptions,
    tls: Option<Arc<rustls::ClientConfig>>,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    connections: Vec<Connection>,
    tally: Tally,
    errors: Vec<String>,
    last_answer: Instant,
    last_look_for_lost: Instant,
}

/// Runs the load and gives its figures as one line of JSON.
pub fn load(options: &LoadOptions) -> Result<String, String> {
    let mut load = Load::new(options)?;
    let before = load.resident()?;
    load.connect_all()?;
    let after = load.resident()?;
    for index in 0..load.connections.len() {
        load.begin(index);
    }
    load.run_for(options.warmup)?;
    load.tally = Tally::default();
    let start = Instant::now();
    let cpu = load.cpu()?;
    load.run_for(options.duration)?;
    let cpu = load.cpu()?.zip(cpu).map(|(end, start)| end - start);
    let seconds = start.elapsed().as_secs_f64();
    let end = load.resident()?;

    let mut latencies = std::mem::take(&mut load.tally.latencies);
    latencies.sort_unstable();
    let requests = latencies.len();
    let percentile = |part: f64| {
        let rank = ((requests as f64 * part).ceil() as usize).clamp(1, requests.max(1)) - 1;
        latencies.get(rank).map(|nanos| f64::from(*nanos) / 1e3)
    };
    Ok(object(&[
        ("requests", Some(requests as f64)),
        ("seconds", Some(seconds)),
        ("rate", Some(requests as f64 / seconds)),
        ("p50_us", percentile(0.50)),
        ("p99_us", percentile(0.99)),
        ("lost", Some(load.tally.lost as f64)),
        ("errors", Some(load.errors.len() as f64)),
        (
            "cpu_us",
            cpu.filter(|_| requests > 0).map(|cpu| cpu.as_secs_f64() * 1e6 / requests as f64),
        ),
        ("cpu_share", cpu.map(|cpu| cpu.as_secs_f64() / seconds)),
        ("rss_before", before),
        ("rss_connected", after),
        ("rss_loaded", end),
    ]))
}

/// Opens the connections, exchanges one message on each, then measures the server while nothing happens.
pub fn hold(options: &LoadOptions) -> Result<String, String> {
    let mut load = Load::new(options)?;
    let before = load.resident()?;
    load.connect_all()?;
    std::thread::sleep(SETTLE);
    let after = load.resident()?;
    let cpu = load.cpu()?;
    let start = Instant::now();
    std::thread::sleep(options.duration);
    let cpu = load.cpu()?.zip(cpu).map(|(end, start)| end - start);
    let per_connection =
        after.zip(before).map(|(after, before)| (after - before) / options.connections as f64);
    Ok(object(&[
        ("connections", Some(options.connections as f64)),
        ("errors", Some(load.errors.len() as f64)),
        ("rss_before", before),
        ("rss_connected", after),
        ("bytes_per_connection", per_connection),
        ("cpu_share", cpu.map(|cpu| cpu.as_secs_f64() / start.elapsed().as_secs_f64())),
    ]))
}

fn object(fields: &[(&str, Option<f64>)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| match value {
            Some(value) if value.is_finite() => format!("\"{name}\": {value}"),
            _ => format!("\"{name}\": null"),
        })
        .collect();
    format!("{{{}}}", fields.join(", "))
}

impl<'a> Load<'a> {
    fn new(options: &'a LoadOptions) -> Result<Self, String> {
        let tls = match (options.transport, &options.ca) {
            (Transport::Tls, Some(ca)) => Some(wire::client_config(ca)?),
            (Transport::Tls, None) => return Err("tls needs --ca".to_owned()),
            _ => None,
        };
        let now = Instant::now();
        Ok(Self {
            options,
            tls,
            poll: Poll::new().map_err(|error| error.to_string())?,
            events: Events::with_capacity(1024),
            buffer: vec![0; 256 * 1024],
            connections: Vec::with_capacity(options.connections),
            tally: Tally::default(),
            errors: Vec::new(),
            last_answer: now,
            last_look_for_lost: now,
        })
    }

    fn resident(&self) -> Result<Option<f64>, String> {
        let read =
            |pid| process::resident(pid).map_err(|error| format!("the server's memory: {error}"));
        self.options.pid.map(read).transpose().map(|bytes| bytes.map(|bytes| bytes as f64))
    }

    fn cpu(&self) -> Result<Option<Duration>, String> {
        let read =
            |pid| process::cpu_time(pid).map_err(|error| format!("the server's CPU time: {error}"));
        self.options.pid.map(read).transpose()
    }

    /// Makes the connections one by one, with one exchange on each: the server has then accepted it and
    /// allocated what it needs for it, and its backlog never overflows.
    fn connect_all(&mut self) -> Result<(), String> {
        for index in 0..self.options.connections {
            let (mut wire, exchange) =
                self.connect(index).map_err(|error| format!("connection {index}: {error}"))?;
            wire.socket
                .register(self.poll.registry(), Token(index), Interest::READABLE)
                .map_err(|error| error.to_string())?;
            let started = Instant::now();
            self.connections.push(Connection {
                wire,
                exchange,
                sent: 0,
                started,
                in_flight: false,
                waits_for_space: false,
                alive: true,
            });
            self.last_answer = started;
            self.begin(index);
            while self.connections[index].in_flight {
                self.turn(false)?;
            }
        }
        Ok(())
    }

    fn connect(&self, index: usize) -> Result<(Wire, Exchange), String> {
        let text = |error: io::Error| error.to_string();
        let options = self.options;
        match options.transport {
            Transport::Unix => {
                let stream =
                    std::os::unix::net::UnixStream::connect(&options.address).map_err(text)?;
                stream.set_nonblocking(true).map_err(text)?;
                let socket = Socket::Unix(mio::net::UnixStream::from_std(stream));
                Ok((Wire::plain(socket), Exchange::echo(options.size, index)))
            }
            Transport::Udp => {
                let server = self.resolve()?;
                let socket = std::net::UdpSocket::bind((server.ip(), 0)).map_err(text)?;
                socket.connect(server).map_err(text)?;
                socket.set_nonblocking(true).map_err(text)?;
                let socket = Socket::Udp(mio::net::UdpSocket::from_std(socket));
                Ok((Wire::plain(socket), Exchange::datagram(options.size, index)))
            }
            Transport::Tcp | Transport::Tls | Transport::Http => {
                let mut stream =
                    std::net::TcpStream::connect_timeout(&self.resolve()?, STALL).map_err(text)?;
                stream.set_nodelay(true).map_err(text)?;
                stream.set_read_timeout(Some(STALL)).map_err(text)?;
                let session = match &self.tls {
                    Some(config) => Some(wire::client_session(config, &mut stream)?),
                    None => None,
                };
                stream.set_nonblocking(true).map_err(text)?;
                let socket = Socket::Tcp(mio::net::TcpStream::from_std(stream));
                let wire = match session {
                    Some(session) => Wire::tls(socket, session),
                    None => Wire::plain(socket),
                };
                let exchange = match options.transport {
                    Transport::Http => Exchange::http(&options.path),
                    _ => Exchange::echo(options.size, index),
                };
                Ok((wire, exchange))
            }
        }
    }

    fn resolve(&self) -> Result<SocketAddr, String> {
        let mut found =
            self.options.address.to_socket_addrs().map_err(|error| error.to_string())?;
        found.next().ok_or_else(|| "the address resolves to nothing".to_owned())
    }

    fn run_for(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn(true)?;
        }
        Ok(())
    }

    /// Waits once and handles what is ready. `again`: whether an answer starts the next request.
    fn turn(&mut self, again: bool) -> Result<(), String> {
        match self.poll.poll(&mut self.events, Some(TURN)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.to_string()),
            _ => {}
        }
        let ready: Vec<(usize, bool, bool)> = self
            .events
            .iter()
            .map(|event| {
                (event.token().0, event.is_writable(), event.is_readable() || event.is_error())
            })
            .collect();
        for (index, writable, readable) in ready {
            if writable && self.connections[index].waits_for_space {
                self.push(index);
            }
            if readable {
                self.read(index, again);
            }
        }
        let now = Instant::now();
        if self.options.transport == Transport::Udp {
            self.send_lost_again(now);
        } else if now.duration_since(self.last_answer) > STALL {
            self.errors.push(format!("no answer for {} s", STALL.as_secs()));
        }
        match self.errors.first() {
            Some(error) => Err(format!(
                "{error} ({} connections, {} errors)",
                self.connections.len(),
                self.errors.len()
            )),
            None => Ok(()),
        }
    }

    fn begin(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.exchange.renew();
        connection.sent = 0;
        connection.in_flight = true;
        connection.started = Instant::now();
        self.push(index);
    }

    /// Sends what is left of the request, and asks to be told of space if not all of it could go.
    fn push(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let request = connection.exchange.request();
        let outcome = loop {
            if connection.sent == request.len() {
                break connection.wire.flush();
            }
            match connection.wire.send(&request[connection.sent..]) {
                Ok(count) => connection.sent += count,
                Err(error) => break Err(error),
            }
        };
        let full = match outcome {
            Ok(()) => false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(error) => return self.fail(index, format!("send: {error}")),
        };
        if full != connection.waits_for_space {
            connection.waits_for_space = full;
            let interest =
                if full { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let registered =
                connection.wire.socket.reregister(self.poll.registry(), Token(index), interest);
            if let Err(error) = registered {
                self.fail(index, error.to_string());
            }
        }
    }

    fn read(&mut self, index: usize, again: bool) {
        loop {
            let connection = &mut self.connections[index];
            if !connection.alive {
                return;
            }
            let count = match connection.wire.recv(&mut self.buffer) {
                Ok(0) if self.options.transport != Transport::Udp => {
                    return self.fail(index, "the server closed the connection".to_owned());
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.fail(index, format!("receive: {error}")),
            };
            let drained = count < self.buffer.len() && connection.wire.short_read_drains();
            match connection.exchange.feed(&self.buffer[..count]) {
                Ok(true) if connection.in_flight => {
                    let now = Instant::now();
                    let nanos = now.duration_since(connection.started).as_nanos();
                    connection.in_flight = false;
                    self.last_answer = now;
                    self.tally.latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
                    if again {
                        self.begin(index);
                    }
                }
                Ok(_) => {}
                Err(error) => return self.fail(index, error),
            }
            if drained {
                return;
            }
        }
    }

    fn send_lost_again(&mut self, now: Instant) {
        if now.duration_since(self.last_look_for_lost) < DATAGRAM_PATIENCE / 4 {
            return;
        }
        self.last_look_for_lost = now;
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            if connection.in_flight && now.duration_since(connection.started) > DATAGRAM_PATIENCE {
                self.tally.lost += 1;
                self.begin(index);
            }
        }
        if now.duration_since(self.last_answer) > STALL {
            self.errors.push(format!("no answer for {} s", STALL.as_secs()));
        }
    }

    fn fail(&mut self, index: usize, message: String) {
        let connection = &mut self.connections[index];
        connection.alive = false;
        connection.in_flight = false;
        self.errors.push(format!("connection {index}: {message}"));
    }
}
