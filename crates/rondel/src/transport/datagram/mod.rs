//! Datagram sockets: the transport object and its life.
//!
//! The states are those of [`super::socket`]; [`receiving`] and [`sending`] are the two directions.
//! The source is level-triggered: a turn takes one batch of datagrams, and the poller tells again
//! when there are more, so that a flood on one socket cannot starve the rest.

mod receiving;
mod sending;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyContext, PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::poller::{LEVEL_IS_NATIVE, Readiness, Watch};
use rondel_reactor::slab::Key;

use self::receiving::Arrived;
use self::sending::{Destination, Unsent};
use super::address::Pair;
use super::endpoint::Endpoint;
use super::flow::{self, Flow};
use crate::event_loop::{Loop, Target, turn, watching};
use crate::ffi::confined::Confined;
use crate::ffi::context;
use crate::ffi::handle::HandleRef;
use crate::imports;

/// The transport of a datagram socket: UDP, Unix, or what else receives whole messages.
#[pyclass(frozen, dict, weakref, module = "rondel._rondel", name = "DatagramTransport")]
pub struct DatagramTransport {
    port: Confined<Port>,
}

/// A transport's state. Fields are cells, and no borrow outlives a statement that calls Python.
struct Port {
    /// Gone after connection_lost().
    event_loop: RefCell<Option<Py<Loop>>>,
    protocol: RefCell<Option<Py<PyAny>>>,
    /// In which the protocol's methods are called.
    context: Py<PyContext>,
    endpoint: Endpoint,
    /// The remote address that the transport was made with.
    address: Option<Py<PyAny>>,
    key: Cell<Option<Key>>,
    /// What the poller watches for.
    watch: Cell<Watch>,
    waiter: RefCell<Option<Py<PyAny>>>,

    closing: Cell<bool>,
    /// How often sends came after the connection was lost, plus one; 0 while it is not lost.
    conn_lost: Cell<u32>,
    lost_reason: RefCell<Option<PyErr>>,

    read_paused: Cell<bool>,
    /// Datagrams that were received and wait for the protocol.
    arrived: RefCell<VecDeque<Arrived>>,
    /// Who sent the datagram that the protocol got last, natively and for Python: usually the answer
    /// goes there.
    last_sender: RefCell<Option<Pair>>,

    /// The last address that was parsed for sending.
    last_target: RefCell<Option<Pair>>,
    queue: RefCell<VecDeque<Unsent>>,
    /// What flow control counts of the queue, in bytes.
    queued: Cell<usize>,
    /// Something was queued, and the flush that finds the queue empty is still to come.
    flushing: Cell<bool>,
    flow: Flow,
}

const NOTHING: Watch = Watch { read: false, write: false };

impl Port {
    fn event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, Loop>> {
        self.event_loop.borrow().as_ref().map(|event_loop| event_loop.bind(py).clone())
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol.borrow().as_ref().map(|protocol| protocol.bind(py).clone())
    }

    /// Whether the protocol is to get datagrams.
    fn is_reading(&self) -> bool {
        !self.closing.get() && !self.read_paused.get() && self.conn_lost.get() == 0
    }

    /// The protocol learns of an error that does not end the transport.
    fn error_received(&self, error: &PyErr, py: Python<'_>) -> PyResult<()> {
        let Some(protocol) = self.protocol(py) else { return Ok(()) };
        let error = crate::errors::exception(py, error);
        protocol.call_method1(intern!(py, "error_received"), (error,)).map(drop)
    }
}

impl DatagramTransport {
    fn port<'a>(&'a self, py: Python<'a>) -> &'a Port {
        self.port.get(py)
    }

    /// Makes a transport of a non-blocking Python socket; schedules connection_made(), the start of
    /// reading and then the waiter's result.
    pub fn open<'py>(
        event_loop: &Bound<'py, Loop>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        address: Option<Bound<'py, PyAny>>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        let py = event_loop.py();
        let state = event_loop.get().state(py);
        state.check_closed()?;
        let own_context = context::copy_current(py)?;
        let endpoint = Endpoint::adopted(sock, extra)?;
        let fd = endpoint.number();
        // As in asyncio, an empty address is none.
        let address = match address {
            Some(address) if address.is_truthy()? => Some(address.unbind()),
            _ => None,
        };
        let port = Port {
            event_loop: RefCell::new(Some(event_loop.clone().unbind())),
            protocol: RefCell::new(Some(protocol.clone().unbind())),
            context: own_context.clone().unbind(),
            endpoint,
            address,
            key: Cell::new(None),
            watch: Cell::new(NOTHING),
            waiter: RefCell::new(waiter),
            closing: Cell::new(false),
            conn_lost: Cell::new(0),
            lost_reason: RefCell::new(None),
            read_paused: Cell::new(false),
            arrived: RefCell::default(),
            last_sender: RefCell::new(None),
            last_target: RefCell::new(None),
            queue: RefCell::default(),
            queued: Cell::new(0),
            flushing: Cell::new(false),
            flow: Flow::default(),
        };
        let this = Bound::new(py, DatagramTransport { port: Confined::new(port) })?;
        let weak = super::weak_reference(&this)?;
        drop(state.transports.borrow_mut().insert(fd, weak));
        let callback = protocol.getattr(intern!(py, "connection_made"))?;
        let args = PyTuple::new(py, [&this])?;
        state.push_ready(HandleRef::from_parts(event_loop, &callback, &args, Some(&own_context))?);
        state.push_step(this.clone().into_any().unbind(), started);
        Ok(this)
    }
}

/// Step: only after connection_made() does the transport read, and only then is the waiter told.
fn started(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let this = target.cast::<DatagramTransport>()?;
    let py = this.py();
    let port = this.get().port(py);
    if let Some(event_loop) = port.event_loop(py)
        && port.conn_lost.get() == 0
    {
        let state = event_loop.get().state(py);
        match state.add_listener(port.endpoint.fd(py), target.clone().unbind(), on_event) {
            Ok(key) => {
                port.key.set(Some(key));
                port.watch.set(Watch { read: true, write: false });
                update_watch(this, port)?;
            }
            Err(error) => fatal_error(this, error, "Fatal error on transport")?,
        }
    }
    match port.waiter.take() {
        Some(waiter) => turn::set_none_unless_done(waiter.bind(py)),
        None => Ok(()),
    }
}

fn on_event(target: &Bound<'_, PyAny>, readiness: Readiness) -> PyResult<()> {
    let this = target.cast::<DatagramTransport>()?;
    let port = this.get().port(this.py());
    let read = if readiness.readable { receiving::ready(this, port) } else { Ok(()) };
    // An exception that leaves the loop must not take the other half of the event with it.
    let written = if readiness.writable { sending::ready(this, port) } else { Ok(()) };
    if !LEVEL_IS_NATIVE
        && let (Some(key), Some(event_loop)) = (port.key.get(), port.event_loop(this.py()))
    {
        let state = event_loop.get().state(this.py());
        watching::change_native(
            state,
            port.endpoint.fd(this.py()),
            key,
            port.watch.get(),
            port.watch.get(),
        )?;
    }
    read.and(written)
}

/// Has the poller watch for what the transport can use now. The loop keeps the transport alive while
/// that is anything; one that neither reads nor sends can only be used by the program.
fn update_watch(this: &Bound<'_, DatagramTransport>, port: &Port) -> PyResult<()> {
    let py = this.py();
    let (Some(key), Some(event_loop)) = (port.key.get(), port.event_loop(py)) else {
        return Ok(());
    };
    let wanted = Watch { read: port.is_reading(), write: port.flushing.get() };
    let before = port.watch.replace(wanted);
    if before == wanted {
        return Ok(());
    }
    let state = event_loop.get().state(py);
    watching::change_native(state, port.endpoint.fd(py), key, before, wanted)?;
    if wanted.is_empty() {
        state.hold(key, Target::Dormant(super::weak_reference(this)?));
    } else if before.is_empty() {
        state.hold(key, Target::Held(this.clone().into_any().unbind()));
    }
    Ok(())
}

/// Ends the transport after an error that is not for error_received().
fn fatal_error(this: &Bound<'_, DatagramTransport>, error: PyErr, message: &str) -> PyResult<()> {
    let py = this.py();
    let port = this.get().port(py);
    super::note_fatal(port.event_loop(py), this, port.protocol(py), &error, message)?;
    force_close(this, Some(error))
}

/// Ends the transport now: what is queued is lost.
fn force_close(this: &Bound<'_, DatagramTransport>, error: Option<PyErr>) -> PyResult<()> {
    let port = this.get().port(this.py());
    if port.conn_lost.get() > 0 {
        return Ok(());
    }
    drop(port.queue.take());
    port.queued.set(0);
    lose(this, error)
}

/// Schedules connection_lost(). The caller has checked that this happens once.
fn lose(this: &Bound<'_, DatagramTransport>, error: Option<PyErr>) -> PyResult<()> {
    let py = this.py();
    let port = this.get().port(py);
    let Some(event_loop) = port.event_loop(py) else { return Ok(()) };
    let state = event_loop.get().state(py);
    state.check_closed()?;
    port.closing.set(true);
    port.conn_lost.set(1);
    drop(port.arrived.take());
    drop(port.lost_reason.replace(error));
    unregister(port, py);
    state.push_step(this.clone().into_any().unbind(), connection_lost);
    Ok(())
}

fn unregister(port: &Port, py: Python<'_>) {
    if let Some(key) = port.key.take()
        && let Some(event_loop) = port.event_loop(py)
    {
        let watched = !port.watch.replace(NOTHING).is_empty();
        let fd = if watched { port.endpoint.fd(py) } else { -1 };
        event_loop.get().state(py).remove_native(fd, key);
    }
}

/// Step: the protocol learns of the end, and the socket is closed.
fn connection_lost(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let this = target.cast::<DatagramTransport>()?;
    let py = this.py();
    let port = this.get().port(py);
    let reason = port.lost_reason.take().map(|error| error.into_value(py));
    let told = match port.protocol(py) {
        Some(protocol) => context::run_in(port.context.bind(py), || {
            protocol.call_method1(intern!(py, "connection_lost"), (reason,))
        })
        .map(drop),
        None => Ok(()),
    };
    if let Some(event_loop) = port.event_loop.take() {
        super::forget_descriptor(event_loop.bind(py), port.endpoint.number(), this);
    }
    let closed = port.endpoint.close(py);
    drop(port.queue.take());
    drop(port.protocol.take());
    told.and(closed)
}

#[pymethods]
impl DatagramTransport {
    /// isinstance() believes `__class__`; see SocketTransport's.
    #[getter]
    fn __class__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Ok(imports::datagram_transport_type(slf.py())?.clone().unbind())
    }

    /// What is known of the socket: "socket", "sockname", "peername".
    #[pyo3(signature = (name, default=None))]
    fn get_extra_info<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = slf.py();
        Ok(slf.get().port(py).endpoint.extra_info(py, name)?.or(default))
    }

    /// Set the protocol that gets the datagrams from now on.
    fn set_protocol(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>) {
        let port = slf.get().port(slf.py());
        drop(port.protocol.replace(Some(protocol.clone().unbind())));
    }

    /// The current protocol.
    fn get_protocol<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        slf.get().port(slf.py()).protocol(slf.py())
    }

    /// Whether the transport is closed or about to be.
    fn is_closing(slf: &Bound<'_, Self>) -> bool {
        slf.get().port(slf.py()).closing.get()
    }

    /// Stop receiving, send what is queued, then close.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let port = slf.get().port(slf.py());
        if port.closing.replace(true) {
            return Ok(());
        }
        if port.queue.borrow().is_empty() {
            return lose(slf, None);
        }
        drop(port.arrived.take());
        update_watch(slf, port)
    }

    /// Close at once; what is queued is lost.
    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        force_close(slf, None)
    }

    /// Whether the protocol gets datagrams.
    fn is_reading(slf: &Bound<'_, Self>) -> bool {
        let port = slf.get().port(slf.py());
        !port.closing.get() && !port.read_paused.get()
    }

    /// Stop calling datagram_received() until resume_reading().
    fn pause_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let port = slf.get().port(slf.py());
        if port.closing.get() || port.read_paused.replace(true) {
            return Ok(());
        }
        update_watch(slf, port)
    }

    /// Call datagram_received() again.
    fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let port = slf.get().port(slf.py());
        if port.closing.get() || !port.read_paused.replace(false) {
            return Ok(());
        }
        receiving::deliver_later(slf, port);
        update_watch(slf, port)
    }

    /// Send a datagram to addr, or to the remote address that the transport was made with; never
    /// blocks, what cannot be sent now is queued.
    #[pyo3(signature = (data, addr=None))]
    fn sendto(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyAny>,
        addr: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        sending::sendto(slf, data, addr)
    }

    /// Bytes that wait to be sent; from Python 3.13 on with 8 more for each datagram.
    fn get_write_buffer_size(slf: &Bound<'_, Self>) -> usize {
        slf.get().port(slf.py()).queued.get()
    }

    /// The (low, high) limits of the write buffer in bytes.
    fn get_write_buffer_limits(slf: &Bound<'_, Self>) -> (usize, usize) {
        let flow = &slf.get().port(slf.py()).flow;
        (flow.low_water.get(), flow.high_water.get())
    }

    /// Set the limits in bytes beyond which the protocol is asked to pause, and to resume.
    #[pyo3(signature = (high=None, low=None))]
    fn set_write_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<&Bound<'_, PyAny>>,
        low: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (low, high) = flow::limits(high, low, flow::HIGH_WATER)?;
        let port = slf.get().port(slf.py());
        port.flow.low_water.set(low);
        port.flow.high_water.set(high);
        sending::pause_protocol_if_needed(slf, port)
    }

    #[getter]
    fn _loop<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, Loop>> {
        slf.get().port(slf.py()).event_loop(slf.py())
    }

    /// The socket object (private name that programs use).
    #[getter]
    fn _sock<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        slf.get().port(slf.py()).endpoint.socket(slf.py())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        describe(slf.get().port(slf.py()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(port) = self.port.in_traverse(&visit) else { return Ok(()) };
        visit.call(&port.context)?;
        visit.call(&port.address)?;
        port.endpoint.traverse(&visit)?;
        if let Ok(event_loop) = port.event_loop.try_borrow() {
            visit.call(&*event_loop)?;
        }
        for field in [&port.protocol, &port.waiter] {
            if let Ok(field) = field.try_borrow() {
                visit.call(&*field)?;
            }
        }
        for unsent in port.queue.try_borrow().iter().flat_map(|queue| queue.iter()) {
            if let Destination::Object(address) = &unsent.to {
                visit.call(address)?;
            }
        }
        Ok(())
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let port = slf.get().port(slf.py());
        unregister(port, slf.py());
        drop(port.protocol.take());
        drop(port.waiter.take());
        drop(port.queue.take());
        drop(port.event_loop.take());
    }
}

fn describe(port: &Port) -> String {
    let polling = port.event_loop.borrow().is_some().then(|| {
        let watch = port.watch.get();
        (watch.read, watch.write, port.queued.get())
    });
    super::description("DatagramTransport", &port.endpoint, port.closing.get(), polling)
}

impl Drop for DatagramTransport {
    fn drop(&mut self) {
        let port = self.port.get_mut();
        if port.endpoint.is_closed() {
            return;
        }
        let description = describe(port);
        Python::attach(|py| {
            super::abandon(py, &description, &port.endpoint, || unregister(port, py));
        });
    }
}
