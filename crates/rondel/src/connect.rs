//! `create_connection()` in the usual case: TCP to one address that is given as such, without options.
//!
//! The socket is made, connected and handed to its transport without a Python object for it, and stays
//! in the poller from the connect on. `rondel/connecting.py` does all other cases, and decides which
//! this is; what a program sees of both is the same.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::net;
use rondel_reactor::poller::Readiness;
use rondel_reactor::slab::Key;
use socket2::SockAddr;

use crate::coroutine::{Coroutine, Operation};
use crate::errors::os_error;
use crate::event_loop::{Loop, turn};
use crate::ffi::audit;
use crate::ffi::confined::Confined;
use crate::ffi::stepping::Step;
use crate::imports;
use crate::transport::socket::SocketTransport;

/// `loop.create_connection(factory, host, port, family=family)` as a coroutine; None when that is not
/// for this module: the host is no address, somebody has put another class in the place of
/// `socket.socket`, or listens to audit events, which name socket objects.
pub fn create_connection<'py>(
    event_loop: &Bound<'py, Loop>,
    factory: Py<PyAny>,
    host: &Bound<'py, PyAny>,
    port: &Bound<'py, PyAny>,
    family: i32,
) -> PyResult<Option<Coroutine>> {
    let py = event_loop.py();
    let Some(address) = literal(host, port, family) else { return Ok(None) };
    if !has_stock_sockets(py)? || audit::has_hooks(py) {
        return Ok(None);
    }
    let operation = Connect {
        event_loop: event_loop.clone().unbind(),
        factory,
        host: host.clone().unbind(),
        address,
        phase: Phase::New,
    };
    Ok(Some(Coroutine::of_operation("create_connection", operation)))
}

fn literal(host: &Bound<'_, PyAny>, port: &Bound<'_, PyAny>, family: i32) -> Option<SocketAddr> {
    let ip: IpAddr = host.cast_exact::<PyString>().ok()?.to_str().ok()?.parse().ok()?;
    let port = port.cast_exact::<PyInt>().ok()?.extract().ok()?;
    let own = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    (family == libc::AF_UNSPEC || family == own).then_some(SocketAddr::new(ip, port))
}

/// Whether `socket.socket` is what the standard library made it.
fn has_stock_sockets(py: Python<'_>) -> PyResult<bool> {
    let class = imports::current_socket_type(py)?;
    let native = imports::native_socket_type(py)?;
    let connect = intern!(py, "connect");
    Ok(class.is(imports::socket_type(py)?)
        && class.getattr(connect)?.is(&native.getattr(connect)?)
        && class.getattr(intern!(py, "__module__"))?.eq(intern!(py, "socket"))?)
}

/// The connection that is being made.
struct Connect {
    event_loop: Py<Loop>,
    factory: Py<PyAny>,
    host: Py<PyAny>,
    address: SocketAddr,
    phase: Phase,
}

enum Phase {
    New,
    /// Waits for the socket, and for this future.
    Connecting(Attempt, Py<PyAny>),
    /// Waits until connection_made() was called, which sets this future.
    Opening {
        transport: Py<SocketTransport>,
        protocol: Py<PyAny>,
        waiter: Py<PyAny>,
    },
    Done,
}

impl Operation for Connect {
    fn resume(&mut self, py: Python<'_>, answer: PyResult<()>) -> PyResult<Step> {
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::New => {
                answer?;
                let waiter = self.create_future(py)?;
                let attempt = Attempt::begin(py, &self.event_loop, self.address, &waiter)?;
                self.phase = Phase::Connecting(attempt, waiter.clone_ref(py));
                wait_for(py, waiter)
            }
            Phase::Connecting(attempt, future) => {
                answer?;
                future.call_method0(py, intern!(py, "result"))?;
                self.check(py, &attempt)?;
                self.open(py, attempt)
            }
            Phase::Opening { transport, protocol, waiter } => {
                let made =
                    answer.and_then(|()| waiter.call_method0(py, intern!(py, "result")).map(drop));
                if let Err(error) = made {
                    transport.call_method0(py, intern!(py, "close"))?;
                    return Err(error);
                }
                let pair = PyTuple::new(py, [transport.into_any(), protocol])?;
                Ok(Step::Returned(pair.into_any().unbind()))
            }
            Phase::Done => Ok(Step::Returned(py.None())),
        }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.factory)?;
        visit.call(&self.host)?;
        match &self.phase {
            Phase::Connecting(attempt, future) => {
                visit.call(&attempt.event_loop)?;
                visit.call(&attempt.watch)?;
                visit.call(future)
            }
            Phase::Opening { transport, protocol, waiter } => {
                visit.call(transport)?;
                visit.call(protocol)?;
                visit.call(waiter)
            }
            Phase::New | Phase::Done => Ok(()),
        }
    }
}

impl Connect {
    fn create_future(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.event_loop.call_method0(py, intern!(py, "create_future"))
    }

    /// # Errors
    /// What sock_connect() raises of a connect that failed.
    fn check(&self, py: Python<'_>, attempt: &Attempt) -> PyResult<()> {
        let fd = attempt.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let outcome = net::connect_error(fd).map_err(|error| os_error(py, &error))?;
        let Some(number) = outcome.and_then(|error| error.raw_os_error()) else { return Ok(()) };
        let (host, port) = (self.host.bind(py), self.address.port());
        let shown = match self.address {
            SocketAddr::V4(_) => (host, port).into_pyobject(py)?,
            SocketAddr::V6(_) => (host, port, 0, 0).into_pyobject(py)?,
        };
        Err(PyOSError::new_err((number, format!("Connect call failed {}", shown.str()?))))
    }

    /// The socket is connected.
    fn open(&mut self, py: Python<'_>, mut attempt: Attempt) -> PyResult<Step> {
        let event_loop = self.event_loop.bind(py);
        let protocol = self.factory.bind(py).call0()?;
        let waiter = self.create_future(py)?;
        let peer = attempt.peer(self.address);
        let Some(socket) = attempt.socket.take() else { return Ok(Step::Returned(py.None())) };
        let connection = (socket, peer);
        let transport =
            SocketTransport::connected(event_loop, connection, &protocol, waiter.clone_ref(py))?;
        attempt.hand_over(&transport);
        self.phase = Phase::Opening {
            transport: transport.unbind(),
            protocol: protocol.unbind(),
            waiter: waiter.clone_ref(py),
        };
        wait_for(py, waiter)
    }
}

fn wait_for(py: Python<'_>, future: Py<PyAny>) -> PyResult<Step> {
    future.setattr(py, intern!(py, "_asyncio_future_blocking"), true)?;
    Ok(Step::Yielded(future))
}

/// A socket that is connecting, in the poller.
struct Attempt {
    event_loop: Py<Loop>,
    /// None once the transport has it.
    socket: Option<OwnedFd>,
    /// None once the transport has it.
    key: Option<Key>,
    watch: Py<ConnectWatch>,
}

impl Attempt {
    fn begin(
        py: Python<'_>,
        event_loop: &Py<Loop>,
        address: SocketAddr,
        waiter: &Py<PyAny>,
    ) -> PyResult<Self> {
        let socket = net::connect(&address.into()).map_err(|error| os_error(py, &error))?;
        let watch = ConnectWatch {
            waiter: Confined::new(RefCell::new(Some(waiter.clone_ref(py)))),
            seen: Confined::new(Cell::default()),
        };
        let watch = Bound::new(py, watch)?;
        let target = watch.clone().into_any().unbind();
        let key = event_loop.get().state(py).add_native(socket.as_raw_fd(), target, ready)?;
        Ok(Attempt {
            event_loop: event_loop.clone_ref(py),
            socket: Some(socket),
            key: Some(key),
            watch: watch.unbind(),
        })
    }

    /// The address at the other end: the one that was asked for, unless that stands for another.
    fn peer(&self, address: SocketAddr) -> SockAddr {
        match &self.socket {
            Some(socket) if address.ip().is_unspecified() || address.port() == 0 => {
                net::peer_address(socket.as_raw_fd()).unwrap_or_else(|_| address.into())
            }
            _ => address.into(),
        }
    }

    fn hand_over(&mut self, transport: &Bound<'_, SocketTransport>) {
        let py = transport.py();
        if let Some(key) = self.key.take() {
            let mut seen = self.watch.get().seen.get(py).get();
            seen.writable = false; // that was the connect
            SocketTransport::take_over(transport, self.event_loop.get().state(py), key, seen);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            // Whoever took the socket without its place in the poller has closed it.
            let fd = self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            Python::attach(|py| self.event_loop.get().state(py).remove_native(fd, key));
        }
    }
}

/// What the poller's events of a connecting socket lead to.
#[pyclass(frozen, module = "rondel._rondel", name = "ConnectWatch")]
struct ConnectWatch {
    waiter: Confined<RefCell<Option<Py<PyAny>>>>,
    /// What became possible. The peer may have sent something already, and no event will tell again.
    seen: Confined<Cell<Readiness>>,
}

#[pymethods]
impl ConnectWatch {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.waiter.in_traverse(&visit).map(RefCell::try_borrow) {
            Some(Ok(waiter)) => visit.call(&*waiter),
            _ => Ok(()),
        }
    }

    fn __clear__(&self, py: Python<'_>) {
        drop(self.waiter.get(py).take());
    }
}

fn ready(target: &Bound<'_, PyAny>, readiness: Readiness) -> PyResult<()> {
    let py = target.py();
    let watch = target.cast_exact::<ConnectWatch>()?.get();
    let seen = watch.seen.get(py);
    seen.set(seen.get().and(readiness));
    if !readiness.writable {
        return Ok(());
    }
    match watch.waiter.get(py).take() {
        Some(waiter) => turn::set_none_unless_done(waiter.bind(py)),
        None => Ok(()),
    }
}
