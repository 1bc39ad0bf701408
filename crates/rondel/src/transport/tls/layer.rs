//! The protocol of the transport below: the state of a TLS connection, and what Python sees of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use pyo3::{PyTraverseError, PyVisit};

use super::app::TlsTransport;
use super::engine::Engine;
use super::{Phase, Told, flow, phases};
use crate::event_loop::Loop;
use crate::ffi::confined::Confined;
use crate::imports;
use crate::transport::ending;
use crate::transport::socket::SocketTransport;
use crate::transport::writing;

/// Seconds that a handshake may take (asyncio's default).
const HANDSHAKE_TIMEOUT: f64 = 60.0;
/// Seconds that a shutdown may take (asyncio's default).
const SHUTDOWN_TIMEOUT: f64 = 30.0;

/// The transport below.
pub enum Lower {
    /// Ours, made for this connection, so that nobody has seen it: its methods are called directly.
    Socket(Py<SocketTransport>),
    /// Any.
    Object(Py<PyAny>),
}

/// How a connection is to be made.
pub struct Options<'py> {
    /// None for the default context of a client.
    pub context: Option<Bound<'py, PyAny>>,
    pub server_side: bool,
    pub server_hostname: Option<Bound<'py, PyAny>>,
    pub handshake_timeout: Option<Bound<'py, PyAny>>,
    pub shutdown_timeout: Option<Bound<'py, PyAny>>,
}

/// The state of a TLS connection. Fields are cells, and no borrow outlives a call into Python.
pub struct Layer {
    pub event_loop: Py<Loop>,
    /// The program's; gone after connection_lost().
    protocol: RefCell<Option<Py<PyAny>>>,
    /// It is a BufferedProtocol.
    pub buffered: Cell<bool>,
    context: Py<PyAny>,
    pub engine: Engine,
    /// From connection_made() to connection_lost().
    lower: RefCell<Option<Lower>>,
    /// The same after the loss, if it is ours: it still knows the addresses.
    former: RefCell<Option<Py<PyAny>>>,
    app: RefCell<Option<Py<TlsTransport>>>,
    pub waiter: RefCell<Option<Py<PyAny>>>,
    /// A listener made it: nobody waits, and a failure is reported instead.
    pub accepted: bool,
    /// The transport below was made for this connection.
    private: bool,
    /// What get_extra_info() answers from.
    pub extra: Py<PyDict>,

    pub phase: Cell<Phase>,
    pub told: Cell<Told>,
    /// The transport below has come to its end.
    pub eof: Cell<bool>,
    /// Writes after the end, and the loss itself.
    pub conn_lost: Cell<u32>,
    pub handshake_timeout: Py<PyAny>,
    pub shutdown_timeout: Py<PyAny>,
    /// On the loop's clock, in nanoseconds.
    pub handshake_start: Cell<u64>,
    pub handshake_timer: RefCell<Option<Py<PyAny>>>,
    pub shutdown_timer: RefCell<Option<Py<PyAny>>>,

    /// Plaintext that waits to be encrypted, and its size.
    pub backlog: RefCell<VecDeque<Py<PyBytes>>>,
    pub backlog_size: Cell<usize>,
    /// How much of the first of the backlog is encrypted already.
    pub offset: Cell<usize>,
    /// The transport below has asked for a pause.
    pub lower_writing_paused: Cell<bool>,
    /// The transport below has been asked for a pause.
    pub lower_reading_paused: Cell<bool>,
    /// The program has asked for a pause.
    pub app_reading_paused: Cell<bool>,
    /// The program has been asked for a pause.
    pub app_writing_paused: Cell<bool>,
    pub read_high: Cell<usize>,
    pub read_low: Cell<usize>,
    pub write_high: Cell<usize>,
    pub write_low: Cell<usize>,
}

/// Drives TLS over the transport whose protocol it is; `asyncio.sslproto.SSLProtocol` in behaviour.
#[pyclass(frozen, weakref, module = "rondel._rondel", name = "TLSProtocol")]
pub struct TlsLayer {
    layer: Confined<Layer>,
}

fn timeout<'py>(
    py: Python<'py>,
    value: Option<Bound<'py, PyAny>>,
    default: f64,
    name: &str,
) -> PyResult<Py<PyAny>> {
    let Some(value) = value else { return Ok(default.into_pyobject(py)?.into_any().unbind()) };
    if value.le(0)? {
        let text = format!("{name} should be a positive number, got {}", value.str()?);
        return Err(PyValueError::new_err(text));
    }
    Ok(value.unbind())
}

fn default_context<'py>(
    py: Python<'py>,
    options: &Options<'py>,
    has_hostname: bool,
) -> PyResult<Bound<'py, PyAny>> {
    if options.server_side {
        return Err(PyValueError::new_err("Server side SSL needs a valid SSLContext"));
    }
    // Looked up each time: programs replace it, to trust authorities of their own.
    let context = py.import("ssl")?.call_method0("create_default_context")?;
    if !has_hostname {
        context.setattr(intern!(py, "check_hostname"), false)?;
    }
    Ok(context)
}

impl TlsLayer {
    /// Makes the protocol for a transport that is to be made with it (`private`), or that is there
    /// already (start_tls: its protocol knows that the connection is made).
    pub fn make<'py>(
        event_loop: &Bound<'py, Loop>,
        protocol: &Bound<'py, PyAny>,
        options: Options<'py>,
        waiter: Option<Py<PyAny>>,
        private: bool,
        accepted: bool,
    ) -> PyResult<Self> {
        let py = event_loop.py();
        let limit = options.handshake_timeout.clone();
        let handshake_timeout = timeout(py, limit, HANDSHAKE_TIMEOUT, "ssl_handshake_timeout")?;
        let limit = options.shutdown_timeout.clone();
        let shutdown_timeout = timeout(py, limit, SHUTDOWN_TIMEOUT, "ssl_shutdown_timeout")?;
        let hostname = match &options.server_hostname {
            Some(name) if name.is_truthy()? => Some(name.clone()),
            _ => None,
        };
        let context = match &options.context {
            Some(context) if context.is_truthy()? => context.clone(),
            _ => default_context(py, &options, hostname.is_some())?,
        };
        let hostname = if options.server_side { None } else { hostname };
        let engine = Engine::new(&context, options.server_side, hostname.as_ref())?;
        let extra = PyDict::new(py);
        extra.set_item(intern!(py, "sslcontext"), &context)?;
        let layer = Layer {
            event_loop: event_loop.clone().unbind(),
            protocol: RefCell::new(None),
            buffered: Cell::new(false),
            context: context.unbind(),
            engine,
            lower: RefCell::new(None),
            former: RefCell::new(None),
            app: RefCell::new(None),
            waiter: RefCell::new(waiter),
            accepted,
            private,
            extra: extra.unbind(),
            phase: Cell::new(Phase::New),
            told: Cell::new(if private { Told::Nothing } else { Told::Made }),
            eof: Cell::new(false),
            conn_lost: Cell::new(0),
            handshake_timeout,
            shutdown_timeout,
            handshake_start: Cell::new(0),
            handshake_timer: RefCell::new(None),
            shutdown_timer: RefCell::new(None),
            backlog: RefCell::default(),
            backlog_size: Cell::new(0),
            offset: Cell::new(0),
            lower_writing_paused: Cell::new(false),
            lower_reading_paused: Cell::new(false),
            app_reading_paused: Cell::new(false),
            app_writing_paused: Cell::new(false),
            read_high: Cell::new(flow::READ_HIGH_WATER),
            read_low: Cell::new(flow::READ_HIGH_WATER / 4),
            write_high: Cell::new(flow::WRITE_HIGH_WATER),
            write_low: Cell::new(flow::WRITE_HIGH_WATER / 4),
        };
        layer.set_protocol(protocol)?;
        Ok(TlsLayer { layer: Confined::new(layer) })
    }

    /// The state.
    #[inline]
    pub fn layer<'a>(&'a self, py: Python<'a>) -> &'a Layer {
        self.layer.get(py)
    }
}

impl Layer {
    /// The program's protocol, until the connection is lost.
    #[inline]
    pub fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol.borrow().as_ref().map(|protocol| protocol.bind(py).clone())
    }

    pub fn set_protocol(&self, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffered = protocol.is_instance(imports::buffered_protocol(protocol.py())?)?;
        self.buffered.set(buffered);
        drop(self.protocol.replace(Some(protocol.clone().unbind())));
        Ok(())
    }

    /// Whether the loop is in debug mode.
    pub fn debug(&self, py: Python<'_>) -> bool {
        self.event_loop.get().state(py).debug.get()
    }

    /// Remembers the transport below.
    pub fn set_lower(&self, transport: &Bound<'_, PyAny>) {
        let lower = match transport.cast_exact::<SocketTransport>() {
            Ok(socket) if self.private => Lower::Socket(socket.clone().unbind()),
            _ => Lower::Object(transport.clone().unbind()),
        };
        drop(self.lower.replace(Some(lower)));
    }

    fn lower(&self, py: Python<'_>) -> Option<Lower> {
        self.lower.borrow().as_ref().map(|lower| match lower {
            Lower::Socket(socket) => Lower::Socket(socket.clone_ref(py)),
            Lower::Object(object) => Lower::Object(object.clone_ref(py)),
        })
    }

    /// The transport below as an object.
    pub fn lower_object<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.lower(py).map(|lower| match lower {
            Lower::Socket(socket) => socket.into_bound(py).into_any(),
            Lower::Object(object) => object.into_bound(py),
        })
    }

    /// Who knows about the connection below, also when it is over.
    pub fn informant<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let former = || self.former.borrow().as_ref().map(|former| former.bind(py).clone());
        self.lower_object(py).or_else(former)
    }

    /// Whether the transport below calls this protocol only from the loop.
    pub fn lower_is_ours(&self, py: Python<'_>) -> bool {
        self.lower_object(py).is_some_and(|lower| {
            lower.is_exact_instance_of::<SocketTransport>()
                || lower.is_exact_instance_of::<TlsTransport>()
        })
    }

    /// Gives ciphertext to the transport below.
    pub fn lower_write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = data.py();
        match self.lower(py) {
            Some(Lower::Socket(socket)) => writing::write(socket.bind(py), data),
            Some(Lower::Object(object)) => {
                object.call_method1(py, intern!(py, "write"), (data,)).map(drop)
            }
            None => Ok(()),
        }
    }

    /// The same for memory of ours.
    pub fn lower_write_memory(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        match self.lower(py) {
            Some(Lower::Socket(socket)) => writing::write_memory(socket.bind(py), data),
            Some(Lower::Object(object)) => {
                object.call_method1(py, intern!(py, "write"), (PyBytes::new(py, data),)).map(drop)
            }
            None => Ok(()),
        }
    }

    /// Ends the transport below at once; connection_lost() gets the error.
    pub fn force_close_lower(&self, py: Python<'_>, error: Option<PyErr>) -> PyResult<()> {
        match self.lower(py) {
            Some(Lower::Socket(socket)) => ending::force_close(socket.bind(py), error),
            Some(Lower::Object(object)) => {
                let object = object.bind(py);
                // Private, but what asyncio's and uvloop's transports have.
                match object.getattr_opt(intern!(py, "_force_close"))? {
                    Some(method) => {
                        let error = error.map(|error| error.into_value(py));
                        method.call1((error,)).map(drop)
                    }
                    None => object.call_method0(intern!(py, "abort")).map(drop),
                }
            }
            None => Ok(()),
        }
    }

    /// Forgets what belongs to a connection that is there. What is dropped here can run Python code.
    pub fn let_go(&self, py: Python<'_>) {
        if self.lower_is_ours(py) {
            drop(self.former.replace(self.lower_object(py).map(Bound::unbind)));
        }
        drop(self.lower.take());
        drop(self.app.take());
        drop(self.protocol.take());
    }
}

/// The transport that the program sees, made when it is first asked for; None after the loss.
pub fn app_transport<'py>(
    this: &Bound<'py, TlsLayer>,
) -> PyResult<Option<Bound<'py, TlsTransport>>> {
    let py = this.py();
    let layer = this.get().layer(py);
    let known = layer.app.borrow().as_ref().map(|app| app.bind(py).clone());
    if known.is_some() || layer.conn_lost.get() > 0 {
        return Ok(known);
    }
    let made = Bound::new(py, TlsTransport::new(this.clone().unbind()))?;
    drop(layer.app.replace(Some(made.clone().unbind())));
    Ok(Some(made))
}

/// Marks the program's transport as closed, if there is one.
pub fn mark_closed(this: &Bound<'_, TlsLayer>) {
    let py = this.py();
    if let Some(app) = &*this.get().layer(py).app.borrow() {
        app.get().mark_closed(py);
    }
}

#[pymethods]
impl TlsLayer {
    #[new]
    #[pyo3(signature = (
        loop_, app_protocol, sslcontext, waiter=None, server_side=false, server_hostname=None,
        call_connection_made=true, ssl_handshake_timeout=None, ssl_shutdown_timeout=None,
    ))]
    #[allow(clippy::too_many_arguments)] // the interface is asyncio's
    fn py_new<'py>(
        loop_: &Bound<'py, Loop>,
        app_protocol: &Bound<'py, PyAny>,
        sslcontext: Option<Bound<'py, PyAny>>,
        waiter: Option<Py<PyAny>>,
        server_side: bool,
        server_hostname: Option<Bound<'py, PyAny>>,
        call_connection_made: bool,
        ssl_handshake_timeout: Option<Bound<'py, PyAny>>,
        ssl_shutdown_timeout: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let options = Options {
            context: sslcontext,
            server_side,
            server_hostname,
            handshake_timeout: ssl_handshake_timeout,
            shutdown_timeout: ssl_shutdown_timeout,
        };
        Self::make(loop_, app_protocol, options, waiter, call_connection_made, false)
    }

    /// asyncio.Protocol, for isinstance().
    #[getter]
    fn __class__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Ok(imports::protocol_type(slf.py())?.clone().unbind())
    }

    /// The transport below is there: start the handshake.
    fn connection_made(slf: &Bound<'_, Self>, transport: &Bound<'_, PyAny>) -> PyResult<()> {
        phases::connection_made(slf, transport)
    }

    /// Ciphertext has come.
    fn data_received(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        phases::data_received(slf, data)
    }

    /// The transport below has come to its end.
    fn eof_received(slf: &Bound<'_, Self>) -> PyResult<bool> {
        phases::eof_received(slf)
    }

    /// The transport below is gone.
    fn connection_lost(slf: &Bound<'_, Self>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        phases::connection_lost(slf, exc)
    }

    /// The transport below has enough.
    fn pause_writing(slf: &Bound<'_, Self>) {
        slf.get().layer(slf.py()).lower_writing_paused.set(true);
    }

    /// The transport below takes more.
    fn resume_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        flow::lower_resumed(slf)
    }

    fn _resume(slf: &Bound<'_, Self>) -> PyResult<()> {
        phases::proceed(slf)
    }

    fn _check_handshake_timeout(slf: &Bound<'_, Self>) -> PyResult<()> {
        phases::handshake_timed_out(slf)
    }

    fn _check_shutdown_timeout(slf: &Bound<'_, Self>) -> PyResult<()> {
        phases::shutdown_timed_out(slf)
    }

    #[getter]
    fn _app_transport<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, TlsTransport>>> {
        app_transport(slf)
    }

    #[getter]
    fn _app_protocol<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        slf.get().layer(slf.py()).protocol(slf.py())
    }

    #[getter]
    fn _transport<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        slf.get().layer(slf.py()).lower_object(slf.py())
    }

    #[getter]
    pub fn _sslcontext<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyAny> {
        slf.get().layer(slf.py()).context.bind(slf.py()).clone()
    }

    #[getter]
    fn _sslobj<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyAny> {
        slf.get().layer(slf.py()).engine.object(slf.py()).clone()
    }

    #[getter]
    fn _incoming<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyAny> {
        slf.get().layer(slf.py()).engine.incoming(slf.py()).clone()
    }

    #[getter]
    fn _outgoing<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyAny> {
        slf.get().layer(slf.py()).engine.outgoing(slf.py()).clone()
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let phase = slf.get().layer(slf.py()).phase.get();
        format!("<TLSProtocol {phase:?} at {:p}>", slf.as_ptr())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(layer) = self.layer.in_traverse(&visit) else { return Ok(()) };
        visit.call(&layer.event_loop)?;
        visit.call(&layer.context)?;
        visit.call(&layer.extra)?;
        visit.call(&layer.handshake_timeout)?;
        visit.call(&layer.shutdown_timeout)?;
        layer.engine.traverse(&visit)?;
        if let Ok(app) = layer.app.try_borrow() {
            visit.call(&*app)?;
        }
        if let Ok(lower) = layer.lower.try_borrow() {
            match &*lower {
                Some(Lower::Socket(socket)) => visit.call(socket)?,
                Some(Lower::Object(object)) => visit.call(object)?,
                None => {}
            }
        }
        let fields = [
            &layer.protocol,
            &layer.former,
            &layer.waiter,
            &layer.handshake_timer,
            &layer.shutdown_timer,
        ];
        for field in fields {
            if let Ok(field) = field.try_borrow() {
                visit.call(&*field)?;
            }
        }
        Ok(())
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let layer = slf.get().layer(slf.py());
        layer.let_go(slf.py());
        drop(layer.former.take());
        drop(layer.waiter.take());
        drop(layer.handshake_timer.take());
        drop(layer.shutdown_timer.take());
    }
}
