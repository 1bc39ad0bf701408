//! One HTTP/1.1 connection of a client, as the protocol of a transport.
//!
//! If the TLS handshake has agreed on HTTP/2, its place is taken by [`super::http2`] at once.
//!
//! ```text
//!        start()           head arrived           body complete
//! idle ──────────▶ head ────────────────▶ body ───────────────────▶ idle, and on_free(self)
//! ```
//!
//! From start() on the connection is lent: `on_free` is called exactly once for it, when the exchange
//! is over or has failed. `reusable` then tells whether another may follow. An exchange whose request
//! body is still being sent when its response is complete ends the connection.

use std::cell::{Cell, RefCell};

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::{PyTraverseError, PyVisit};

use super::framing::Framing;
use super::http2::connection::Http2Connection;
use super::wait::{Source, Wait};
use super::waiting::{Slot, Waiting, slot};
use super::websocket::WebSocket;
use super::{Lane, faults, visit_slot};
use crate::ffi::confined::Confined;
use crate::imports;

mod receiving;

enum Phase {
    /// Before connection_made(); with what a TLS transport of start_tls() has brought already.
    Unmade(Vec<u8>),
    Idle,
    /// Waiting for a head; with what has arrived of it, and whether the method allows no body.
    Head {
        partial: Vec<u8>,
        bodiless: bool,
    },
    Body(Framing),
    /// The protocol was switched (a proxy's tunnel, a WebSocket); with what has come since then,
    /// until a WebSocket takes it.
    Switched(Vec<u8>),
}

/// See the module's documentation.
#[pyclass(frozen, weakref, dict, module = "rondel._rondel", name = "HttpConnection")]
pub struct Connection {
    pub event_loop: Py<PyAny>,
    transport: Slot,
    phase: Confined<RefCell<Phase>>,
    /// Of the exchange that is going on; its error is why none is possible any more.
    pub waiting: Waiting,
    /// Takes what arrives after a switch of protocols.
    socket: Slot<WebSocket>,
    /// Speaks HTTP/2 in this one's place.
    http2: Slot<Http2Connection>,
    flags: Confined<Flags>,
}

#[derive(Default)]
struct Flags {
    closed: Cell<bool>,
    lent: Cell<bool>,
    keep: Cell<bool>,
    /// A request body is being sent.
    sending: Cell<bool>,
    /// Content encodings are undone.
    decode: Cell<bool>,
    /// The status with which the next response switches the protocol; 0 for none.
    switch: Cell<u16>,
    reading_paused: Cell<bool>,
    writing_paused: Cell<bool>,
    /// Counts arrivals, for the timer that watches for silence.
    arrivals: Cell<u64>,
    /// Counts exchanges.
    exchanges: Cell<u64>,
}

impl Connection {
    fn flags<'a>(&'a self, py: Python<'a>) -> &'a Flags {
        self.flags.get(py)
    }

    fn transport<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.transport.get(py).borrow().as_ref().map(|transport| transport.bind(py).clone())
    }

    /// The head, if it has arrived.
    pub fn take_head(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let expected = || matches!(*self.phase.get(py).borrow(), Phase::Head { .. });
        self.waiting.take_head(py, expected)
    }

    /// Whether the transport takes more.
    ///
    /// # Errors
    /// Why it will never again.
    pub fn has_room(&self, py: Python<'_>) -> PyResult<bool> {
        self.waiting.check(py)?;
        let flags = self.flags(py);
        if flags.closed.get() {
            return Err(faults::disconnected(py));
        }
        Ok(!flags.writing_paused.get())
    }

    /// The reader has room again.
    pub fn resume_reading(&self, py: Python<'_>) -> PyResult<()> {
        if self.flags(py).reading_paused.replace(false)
            && let Some(transport) = self.transport(py)
        {
            transport.call_method0(intern!(py, "resume_reading"))?;
        }
        Ok(())
    }

    pub fn pause_reading(&self, py: Python<'_>) -> PyResult<()> {
        if !self.flags(py).reading_paused.replace(true)
            && let Some(transport) = self.transport(py)
        {
            transport.call_method0(intern!(py, "pause_reading"))?;
        }
        Ok(())
    }

    /// The response is complete.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let flags = self.flags(py);
        if flags.sending.get() {
            flags.keep.set(false);
        }
        self.waiting.end(py)?;
        self.resume_reading(py)?;
        self.free(py)
    }

    /// The exchange is over: tells whoever lent the connection, once.
    fn free(&self, py: Python<'_>) -> PyResult<()> {
        let flags = self.flags(py);
        self.waiting.cancel_timer(py)?;
        if !flags.lent.replace(false) {
            return Ok(());
        }
        if !flags.keep.get() {
            self.shut(py, "close")?;
        }
        Ok(())
    }

    fn tell(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let on_free =
            slf.get().waiting.on_free.get(py).borrow().as_ref().map(|call| call.clone_ref(py));
        if let Some(on_free) = on_free {
            on_free.call1(py, (slf,))?;
        }
        Ok(())
    }

    fn fail_badly(&self, py: Python<'_>, text: &str) -> PyResult<()> {
        self.fail(py, faults::bad_message(py, text))
    }

    /// The exchange has failed, and with it the connection.
    fn fail(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        let phase = self.phase.get(py).replace(Phase::Idle);
        // A WebSocket's last frame may still be on its way.
        let how = if matches!(phase, Phase::Switched(_)) { "close" } else { "abort" };
        self.flags(py).keep.set(false);
        let socket = self.socket.get(py).take();
        if let Some(socket) = socket {
            socket.get().fail(py, &error)?;
        }
        self.waiting.fail(py, error)?;
        self.waiting.wake(py, &self.waiting.head_waiter)?;
        self.waiting.wake(py, &self.waiting.room_waiter)?;
        self.shut(py, how)?;
        self.free(py)
    }

    fn shut(&self, py: Python<'_>, how: &str) -> PyResult<()> {
        self.flags(py).closed.set(true);
        match self.transport(py) {
            Some(transport) => transport.call_method0(how).map(drop),
            None => Ok(()),
        }
    }

    fn lost(&self, py: Python<'_>, cause: &Bound<'_, PyAny>) -> PyResult<()> {
        self.flags(py).closed.set(true);
        let transport = self.transport.get(py).take();
        drop(transport);
        let phase = self.phase.get(py).replace(Phase::Idle);
        let error = match phase {
            Phase::Body(Framing::UntilClose) if cause.is_none() => {
                self.flags(py).keep.set(false);
                return self.finish(py);
            }
            Phase::Body(Framing::Chunked(_)) => {
                faults::incomplete(py, "Not enough data to satisfy transfer length header.")
            }
            Phase::Body(_) => {
                faults::incomplete(py, "Not enough data to satisfy content length header.")
            }
            _ if cause.is_instance_of::<PyOSError>() => faults::of_system(cause),
            _ => faults::disconnected(py),
        };
        if !cause.is_none() {
            error.set_cause(py, Some(PyErr::from_value(cause.clone())));
        }
        self.fail(py, error)
    }
}

/// Runs part of an exchange and then tells `on_free` if the connection is no longer lent.
fn watched(slf: &Bound<'_, Connection>, f: impl FnOnce() -> PyResult<()>) -> PyResult<()> {
    let lent = &slf.get().flags(slf.py()).lent;
    let before = lent.get();
    let result = f();
    if before && !lent.get() {
        Connection::tell(slf)?;
    }
    result
}

#[pymethods]
impl Connection {
    #[new]
    fn new(event_loop: Py<PyAny>) -> Self {
        Connection {
            event_loop,
            transport: slot(),
            phase: Confined::new(RefCell::new(Phase::Unmade(Vec::new()))),
            waiting: Waiting::new(),
            socket: slot(),
            http2: slot(),
            flags: Confined::new(Flags { keep: Cell::new(true), ..Flags::default() }),
        }
    }

    fn connection_made(slf: &Bound<'_, Self>, transport: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let before = this.transport.get(py).replace(Some(transport.clone().unbind()));
        drop(before);
        let Phase::Unmade(early) = this.phase.get(py).replace(Phase::Idle) else { return Ok(()) };
        let early = PyBytes::new(py, &early);
        if !Http2Connection::is_agreed(transport)? {
            return Connection::receive(slf, &early);
        }
        this.flags(py).closed.set(true);
        let event_loop = this.event_loop.bind(py);
        let http2 = Http2Connection::create(event_loop, transport)?;
        this.http2.get(py).replace(Some(http2.clone().unbind()));
        Http2Connection::data_received(&http2, &early)
    }

    /// Who speaks HTTP/2 on the transport, if that is what the TLS handshake has agreed on.
    #[getter]
    fn http2(&self, py: Python<'_>) -> Option<Py<Http2Connection>> {
        self.http2.get(py).borrow().as_ref().map(|http2| http2.clone_ref(py))
    }

    fn data_received(slf: &Bound<'_, Self>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let arrivals = &slf.get().flags(slf.py()).arrivals;
        arrivals.set(arrivals.get() + 1);
        watched(slf, || Connection::receive(slf, data))
    }

    fn eof_received(&self, py: Python<'_>) {
        self.flags(py).closed.set(true);
    }

    fn connection_lost(slf: &Bound<'_, Self>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        watched(slf, || slf.get().lost(slf.py(), exc))
    }

    fn pause_writing(&self, py: Python<'_>) {
        self.flags(py).writing_paused.set(true);
    }

    fn resume_writing(&self, py: Python<'_>) -> PyResult<()> {
        self.flags(py).writing_paused.set(false);
        self.waiting.wake(py, &self.waiting.room_waiter)
    }

    /// Begin an exchange: send a request's head, and its body if it is part of `data`. Returns its
    /// number, for close().
    ///
    /// `bodiless`: the response has no body whatever it says (HEAD). `sending`: more of the request
    /// follows by write(), until sent(). `decode`: undo content encodings. `timer` is cancelled when the exchange is over.
    #[pyo3(signature = (data, bodiless, sending, decode, timer, on_free, /))]
    #[allow(clippy::too_many_arguments)]
    fn start(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyAny>,
        bodiless: bool,
        sending: bool,
        decode: bool,
        timer: Option<Py<PyAny>>,
        on_free: Option<Py<PyAny>>,
    ) -> PyResult<u64> {
        let (py, this) = (slf.py(), slf.get());
        let flags = this.flags(py);
        let Some(transport) = this.transport(py).filter(|_| !flags.closed.get()) else {
            return Err(faults::disconnected(py));
        };
        if flags.lent.get() {
            return Err(PyRuntimeError::new_err("the connection is in use"));
        }
        flags.lent.set(true);
        flags.sending.set(sending);
        flags.decode.set(decode);
        this.phase.get(py).replace(Phase::Head { partial: Vec::new(), bodiless });
        this.waiting.begin(py, timer, on_free);
        let number = flags.exchanges.get() + 1;
        flags.exchanges.set(number);
        transport.call_method1(intern!(py, "write"), (data,))?;
        Ok(number)
    }

    /// The next response switches the protocol if it has this status: nothing that follows is HTTP.
    fn expect_switch(&self, py: Python<'_>, status: u16) {
        self.flags(py).switch.set(status);
    }

    /// `waiter` is done when the server has said 100 Continue (or something else below 200) in the
    /// exchange that is going on.
    fn expect_continue(&self, py: Python<'_>, waiter: Py<PyAny>) {
        self.waiting.expect_continue(py, waiter);
    }

    /// Give what arrives after a switch to a WebSocket.
    fn attach(&self, py: Python<'_>, socket: Py<WebSocket>) -> PyResult<()> {
        self.waiting.check(py)?;
        let rest = match &mut *self.phase.get(py).borrow_mut() {
            Phase::Switched(rest) => std::mem::take(rest),
            _ => return Err(PyRuntimeError::new_err("the protocol was not switched")),
        };
        let before = self.socket.get(py).replace(Some(socket.clone_ref(py)));
        drop(before);
        self.resume_reading(py)?;
        self.feed_socket(py, &socket, &rest)
    }

    /// Wait for the response's head.
    fn response(slf: Py<Self>) -> Wait {
        Wait::new(Source::Head(Lane::Alone(slf)))
    }

    /// Send more of the request.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        self.waiting.check(py)?;
        match self.transport(py).filter(|_| !self.flags(py).closed.get()) {
            Some(transport) => transport.call_method1(intern!(py, "write"), (data,)).map(drop),
            None => Err(faults::disconnected(py)),
        }
    }

    /// Wait until there is room to write.
    fn drain(slf: Py<Self>) -> Wait {
        Wait::new(Source::Room(Lane::Alone(slf)))
    }

    /// The request has been sent whole.
    fn sent(&self, py: Python<'_>) {
        self.flags(py).sending.set(false);
    }

    /// End the exchange with an exception for who waits for it or reads, and the connection with it.
    fn fail_with(slf: &Bound<'_, Self>, error: &Bound<'_, PyAny>) -> PyResult<()> {
        watched(slf, || slf.get().fail(slf.py(), PyErr::from_value(error.clone())))
    }

    /// Close the connection; who waits for its exchange gets ClientConnectionError. With the number of
    /// an exchange: only if that is still going on.
    #[pyo3(signature = (exchange=None, /))]
    fn close(slf: &Bound<'_, Self>, exchange: Option<u64>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let flags = this.flags(py);
        if exchange.is_some_and(|number| number != flags.exchanges.get() || !flags.lent.get()) {
            return Ok(());
        }
        watched(slf, || {
            if !this.flags(py).lent.get() {
                return this.shut(py, "close");
            }
            let error = imports::client_connection_error(py)?.call1(("Connection closed",))?;
            this.fail(py, PyErr::from_value(error))
        })
    }

    /// Bodies of unknown length go in HTTP chunks.
    #[classattr]
    const FRAMED: bool = false;

    /// Whether another exchange can begin.
    #[getter]
    fn reusable(&self, py: Python<'_>) -> bool {
        let flags = self.flags(py);
        flags.keep.get() && !flags.closed.get() && !flags.lent.get()
    }

    /// Whether an exchange is going on.
    #[getter]
    fn lent(&self, py: Python<'_>) -> bool {
        self.flags(py).lent.get()
    }

    /// Whether reading is stopped because the body is not read.
    #[getter]
    fn reading_paused(&self, py: Python<'_>) -> bool {
        self.flags(py).reading_paused.get()
    }

    /// How often something has arrived.
    #[getter]
    fn arrivals(&self, py: Python<'_>) -> u64 {
        self.flags(py).arrivals.get()
    }

    /// The transport, until the connection is lost.
    #[getter(transport)]
    fn transport_object<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.transport(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit_slot(&self.transport, &visit)?;
        self.waiting.traverse(&visit)?;
        visit_slot(&self.socket, &visit)?;
        visit_slot(&self.http2, &visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.waiting.clear(py);
        let transport = self.transport.get(py).take();
        let socket = self.socket.get(py).take();
        let http2 = self.http2.get(py).take();
        drop((transport, socket, http2));
    }
}
