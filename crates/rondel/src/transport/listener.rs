//! Accepting connections on a listening socket.

use std::cell::Cell;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyContext, PyDict};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::net;
use rondel_reactor::poller::Readiness;
use rondel_reactor::slab::Key;

use super::socket::SocketTransport;
use super::tls::layer::{Options, TlsLayer};
use crate::errors::os_error;
use crate::event_loop::{Loop, exceptions};
use crate::ffi::confined::Confined;
use crate::ffi::context;
use crate::ffi::socket::Socket;
use crate::imports;

/// Seconds to wait when the system is out of descriptors or memory (asyncio's figure).
const RETRY_DELAY: u32 = 1;

/// How TLS is spoken on accepted connections.
struct Tls {
    context: Py<PyAny>,
    handshake_timeout: Option<Py<PyAny>>,
    shutdown_timeout: Option<Py<PyAny>>,
}

impl Tls {
    fn protocol<'py>(
        &self,
        event_loop: &Bound<'py, Loop>,
        protocol: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = event_loop.py();
        let bound = |value: &Option<Py<PyAny>>| value.as_ref().map(|value| value.bind(py).clone());
        let options = Options {
            context: Some(self.context.bind(py).clone()),
            server_side: true,
            server_hostname: None,
            handshake_timeout: bound(&self.handshake_timeout),
            shutdown_timeout: bound(&self.shutdown_timeout),
        };
        let layer = TlsLayer::make(event_loop, protocol, options, None, true, true)?;
        Ok(Bound::new(py, layer)?.into_any())
    }
}

/// Turns the connections of one listening socket into transports.
#[pyclass(frozen, weakref, module = "rondel._rondel", name = "Listener")]
pub struct Listener {
    event_loop: Py<Loop>,
    sock: Socket,
    protocol_factory: Py<PyAny>,
    server: Option<Py<PyAny>>,
    /// Connections are TLS connections.
    tls: Option<Tls>,
    context: Py<PyContext>,
    /// Connections taken per wake-up.
    backlog: usize,
    key: Confined<Cell<Option<Key>>>,
    stopped: Confined<Cell<bool>>,
}

#[pymethods]
impl Listener {
    #[new]
    #[pyo3(signature = (
        event_loop, sock, protocol_factory, server, backlog, ssl_context=None,
        ssl_handshake_timeout=None, ssl_shutdown_timeout=None,
    ))]
    #[allow(clippy::too_many_arguments)] // a constructor for Python
    fn new(
        event_loop: &Bound<'_, Loop>,
        sock: &Bound<'_, PyAny>,
        protocol_factory: Py<PyAny>,
        server: Option<Py<PyAny>>,
        backlog: usize,
        ssl_context: Option<Py<PyAny>>,
        ssl_handshake_timeout: Option<Py<PyAny>>,
        ssl_shutdown_timeout: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let py = event_loop.py();
        let tls = ssl_context.map(|context| Tls {
            context,
            handshake_timeout: ssl_handshake_timeout,
            shutdown_timeout: ssl_shutdown_timeout,
        });
        Ok(Listener {
            event_loop: event_loop.clone().unbind(),
            sock: Socket::new(sock)?,
            protocol_factory,
            server,
            tls,
            context: context::copy_current(py)?.unbind(),
            backlog: backlog.max(1),
            key: Confined::new(Cell::new(None)),
            stopped: Confined::new(Cell::new(false)),
        })
    }

    /// Start accepting.
    fn start(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        if this.stopped.get(py).get() || this.key.get(py).get().is_some() {
            return Ok(());
        }
        let target = slf.clone().into_any().unbind();
        let state = this.event_loop.get().state(py);
        this.key.get(py).set(Some(state.add_listener(this.sock.fd(py), target, on_event)?));
        Ok(())
    }

    /// Stop accepting for good; the socket is the caller's to close, afterwards.
    fn stop(slf: &Bound<'_, Self>) {
        slf.get().stopped.get(slf.py()).set(true);
        slf.get().pause(slf.py());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        self.sock.traverse(&visit)?;
        visit.call(&self.protocol_factory)?;
        visit.call(&self.server)?;
        if let Some(tls) = &self.tls {
            visit.call(&tls.context)?;
        }
        visit.call(&self.context)
    }
}

impl Listener {
    fn pause(&self, py: Python<'_>) {
        if let Some(key) = self.key.get(py).take() {
            self.event_loop.get().state(py).remove_native(self.sock.fd(py), key);
        }
    }
}

fn on_event(target: &Bound<'_, PyAny>, _readiness: Readiness) -> PyResult<()> {
    let listener = target.cast::<Listener>()?;
    let py = listener.py();
    let this = listener.get();
    for _ in 0..this.backlog {
        if this.key.get(py).get().is_none() {
            return Ok(()); // a protocol factory has stopped the server
        }
        match net::accept(this.sock.fd(py)) {
            Ok(connection) => serve(py, this, connection)?,
            Err(error) if net::is_retry(&error) => return Ok(()),
            // The peer went away before it was accepted: the next one may be there.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => return out_of_resources(listener, error),
        }
    }
    Ok(())
}

fn serve(
    py: Python<'_>,
    this: &Listener,
    connection: (std::os::fd::OwnedFd, socket2::SockAddr),
) -> PyResult<()> {
    let event_loop = this.event_loop.bind(py);
    if event_loop.get().state(py).debug.get() {
        let peer = super::address::to_python(py, &connection.1)?;
        let format = "%r got a new connection from %r: fd=%r";
        let fd = std::os::fd::AsRawFd::as_raw_fd(&connection.0);
        imports::logger(py)?.call_method1("debug", (format, &this.server, peer, fd))?;
    }
    // Each connection has its own copy of the context in which serving began.
    let own_context =
        this.context.bind(py).call_method0(intern!(py, "copy"))?.cast_into::<PyContext>()?;
    let mut protocol = None;
    let made = context::run_in(&own_context, || {
        let made = this.protocol_factory.bind(py).call0()?;
        protocol = Some(made.clone());
        let server = this.server.as_ref().map(|server| server.clone_ref(py));
        let made = match &this.tls {
            Some(tls) => tls.protocol(event_loop, &made)?,
            None => made,
        };
        SocketTransport::accept(event_loop, connection, &made, &own_context, server)
    });
    let Err(error) = made else { return Ok(()) };
    if exceptions::must_propagate(py, &error) {
        return Err(error);
    }
    // asyncio tells only in debug mode; the connection is closed in any case.
    if event_loop.get().state(py).debug.get() {
        let context = PyDict::new(py);
        context.set_item("message", "Error on transport creation for incoming connection")?;
        context.set_item("exception", crate::errors::exception(py, &error))?;
        if let Some(protocol) = protocol {
            context.set_item("protocol", protocol)?;
        }
        exceptions::call_handler(event_loop, &context)?;
    }
    Ok(())
}

/// The system has no descriptors or memory left: says so and tries again a little later. Other
/// errors go to the loop, which reports them.
fn out_of_resources(listener: &Bound<'_, Listener>, error: std::io::Error) -> PyResult<()> {
    let scarce = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    if !error.raw_os_error().is_some_and(|number| scarce.contains(&number)) {
        return Err(os_error(listener.py(), &error));
    }
    let py = listener.py();
    let this = listener.get();
    let event_loop = this.event_loop.bind(py);
    let error = os_error(py, &error);
    let context = PyDict::new(py);
    context.set_item("message", "socket.accept() out of system resource")?;
    context.set_item("exception", crate::errors::exception(py, &error))?;
    context.set_item("socket", imports::transport_socket(py)?.call1((this.sock.object(),))?)?;
    exceptions::call_handler(event_loop, &context)?;
    this.pause(py);
    event_loop.call_method1("call_later", (RETRY_DELAY, listener.getattr("start")?))?;
    Ok(())
}
