//! The `Loop` object: its state, and what each part of it is for.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`turn`] | one turn: poll, run what is ready, dispatch events, run timers |
//! | [`life_cycle`] | run_forever, run_until_complete, stop, close |
//! | [`tasks`] | create_task and task factories |
//! | [`watching`] | add_reader, add_writer and relatives: descriptors that the program watches |
//! | [`debug`] | debug mode: checks, origins, slow callbacks |
//! | [`exceptions`] | handing errors to the exception handler |
//!
//! All state is confined to attached threads and belongs to the thread that runs the loop; the one
//! thing that other threads do is to push a handle and wake the loop, which the GIL makes safe. No
//! borrow of a `RefCell` is ever held across a call into Python.

pub mod debug;
pub mod exceptions;
pub mod life_cycle;
pub mod tasks;
pub mod turn;
pub mod watching;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyWeakref, PyWeakrefMethods};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::datagrams::Batch;
use rondel_reactor::fork;
use rondel_reactor::poller::{Event, Poller, Readiness, Registrar, Waker, Watch};
use rondel_reactor::slab::{Key, Slab};
use rondel_reactor::timers::Timers;

use crate::coroutine::Coroutine;
use crate::errors::os_error;
use crate::ffi::confined::Confined;
use crate::ffi::handle::HandleRef;
use crate::sendfile;
use crate::sock;
use crate::transport::datagram::DatagramTransport;
use crate::transport::pipe::read::ReadPipeTransport;
use crate::transport::pipe::write::WritePipeTransport;
use crate::transport::socket::SocketTransport;

/// A step of native code on a Python object (a transport), scheduled like a callback.
pub type Step = fn(&Bound<'_, PyAny>) -> PyResult<()>;
/// What a native source does with its events.
pub type OnEvent = fn(&Bound<'_, PyAny>, Readiness) -> PyResult<()>;

/// What waits for its turn.
pub enum Ready {
    /// A callback of the program.
    Handle(HandleRef),
    /// A step of native code.
    Step(Py<PyAny>, Step),
}

/// Who is told about readiness for reading, or for writing, on a watched descriptor.
pub enum Watcher {
    /// A callback, each time.
    Handle(HandleRef),
    /// A future, once: its result is set to None. For native coroutines.
    Future(Py<PyAny>),
    /// Native code, each time. For pipes, whose two directions can be two transports.
    Native(Py<PyAny>, OnEvent),
}

/// What the poller's events lead to.
pub enum Source {
    /// A descriptor that the program watches (level-triggered).
    Watched { fd: RawFd, reader: Option<Watcher>, writer: Option<Watcher> },
    /// A transport or listener of ours.
    Native { target: Target, on_event: OnEvent },
}

/// How the loop holds a native source.
pub enum Target {
    /// Something is to happen on it: the loop keeps it alive.
    Held(Py<PyAny>),
    /// Nothing is, unless the program does something first: when the program drops it, it goes.
    Dormant(Py<PyWeakref>),
}

/// The event loop: base class of `rondel.Loop`, which adds what happens once per connection.
#[pyclass(subclass, frozen, weakref, module = "rondel._rondel", name = "Loop")]
pub struct Loop {
    state: Confined<State>,
}

/// The state of a loop; see the module's documentation for who may touch it.
pub struct State {
    pub ready: RefCell<VecDeque<Ready>>,
    pub timers: RefCell<Timers<HandleRef>>,
    /// Timers that became due in this turn.
    pub due: RefCell<VecDeque<HandleRef>>,
    pub sources: RefCell<Slab<Source>>,
    /// Watched descriptors by number.
    pub watched: RefCell<HashMap<RawFd, Key>>,
    /// Transports by descriptor: programs must not watch these themselves.
    pub transports: RefCell<HashMap<RawFd, Py<PyWeakref>>>,
    /// Absent while a thread waits in it.
    poller: RefCell<Option<Poller>>,
    registrar: RefCell<Option<Registrar>>,
    waker: RefCell<Option<Waker>>,
    /// Collected events that are not dispatched yet; they outlive a turn that an exception ended.
    pub events: RefCell<VecDeque<Event>>,
    /// Spare memory for the next wait.
    spare_events: RefCell<Vec<Event>>,
    /// Transports with writes gathered in the current callback.
    pub unflushed: RefCell<Vec<Py<PyAny>>>,
    /// Where small reads land before they become `bytes`.
    pub scratch: RefCell<Vec<u8>>,
    /// Where datagrams land, from the first one on.
    pub datagrams: RefCell<Option<Box<Batch>>>,
    /// Counts callbacks, so that a transport knows whether two writes come from the same one.
    pub callback_number: Cell<u64>,
    /// When a turn last looked at the clock, in nanoseconds.
    pub last_look: Cell<u64>,
    /// Turns that may still go by without looking at it.
    pub blind_turns: Cell<u32>,
    /// When the loop last polled, in nanoseconds.
    pub last_poll: Cell<u64>,
    /// When the loop last let go of the GIL, in nanoseconds.
    pub last_release: Cell<u64>,
    /// The loop waits, or is about to: whoever adds work must wake it.
    pub sleeping: Cell<bool>,
    pub closed: Cell<bool>,
    pub stopping: Cell<bool>,
    pub debug: Cell<bool>,
    /// The thread that runs the loop (`threading.get_ident()`).
    pub thread_id: Cell<Option<u64>>,
    /// The process that made the loop: a forked child must not touch its poller.
    generation: u32,
    pub slow_callback_duration: Cell<f64>,
    pub task_factory: RefCell<Option<Py<PyAny>>>,
    pub exception_handler: RefCell<Option<Py<PyAny>>>,
    /// The handle that runs, in debug mode.
    pub current_handle: RefCell<Option<HandleRef>>,
    /// The async generator hooks from before the run.
    pub saved_hooks: RefCell<Option<Py<PyAny>>>,
    /// The coroutine origin tracking depth from before debug mode.
    pub saved_origin_depth: Cell<Option<i32>>,
}

impl State {
    fn new(debug: bool) -> io::Result<Self> {
        let (poller, registrar, waker) = Poller::new()?;
        Ok(State {
            ready: RefCell::default(),
            timers: RefCell::default(),
            due: RefCell::default(),
            sources: RefCell::default(),
            watched: RefCell::default(),
            transports: RefCell::default(),
            poller: RefCell::new(Some(poller)),
            registrar: RefCell::new(Some(registrar)),
            waker: RefCell::new(Some(waker)),
            events: RefCell::default(),
            spare_events: RefCell::default(),
            unflushed: RefCell::default(),
            scratch: RefCell::default(),
            datagrams: RefCell::default(),
            callback_number: Cell::new(0),
            last_look: Cell::new(0),
            blind_turns: Cell::new(0),
            last_poll: Cell::new(0),
            last_release: Cell::new(0),
            sleeping: Cell::new(false),
            closed: Cell::new(false),
            stopping: Cell::new(false),
            debug: Cell::new(debug),
            thread_id: Cell::new(None),
            generation: fork::generation(),
            slow_callback_duration: Cell::new(0.1),
            task_factory: RefCell::default(),
            exception_handler: RefCell::default(),
            current_handle: RefCell::default(),
            saved_hooks: RefCell::default(),
            saved_origin_depth: Cell::new(None),
        })
    }

    /// Queues a callback for the next turn.
    #[inline]
    pub fn push_ready(&self, handle: HandleRef) {
        self.ready.borrow_mut().push_back(Ready::Handle(handle));
    }

    /// Queues a step of native code for the next turn.
    pub fn push_step(&self, target: Py<PyAny>, step: Step) {
        self.ready.borrow_mut().push_back(Ready::Step(target, step));
    }

    /// Puts a timer into the heap.
    #[inline]
    pub fn add_timer(&self, handle: HandleRef, deadline: u64) {
        handle.set_scheduled(true);
        self.timers.borrow_mut().push(deadline, handle);
    }

    /// A timer in the heap was cancelled: throws such timers out once they are the majority.
    pub fn timer_cancelled(&self) {
        let dead = {
            let mut timers = self.timers.borrow_mut();
            if !timers.note_cancelled() {
                return;
            }
            timers.compact(HandleRef::is_cancelled)
        };
        for handle in &dead {
            handle.set_scheduled(false);
        }
    }

    /// Wakes the loop when it waits. Called with the GIL held, as the flag is set with it held.
    #[inline]
    pub fn wake(&self) {
        if self.sleeping.replace(false)
            && let Some(waker) = &*self.waker.borrow()
        {
            // The write can only fail when the descriptor is closed, and then nobody waits.
            let _ = waker.wake();
        }
    }

    /// # Errors
    /// `RuntimeError` when the loop is closed.
    pub fn check_closed(&self) -> PyResult<()> {
        if self.closed.get() {
            return Err(PyRuntimeError::new_err("Event loop is closed"));
        }
        Ok(())
    }

    /// # Errors
    /// `RuntimeError` when the loop is closed, or in a forked child.
    #[inline]
    pub fn check_usable(&self) -> PyResult<()> {
        if self.closed.get() || !self.is_own_process() {
            self.check_closed()?;
            self.check_process()?;
        }
        Ok(())
    }

    /// Whether this process made the loop.
    #[inline]
    pub fn is_own_process(&self) -> bool {
        fork::generation() == self.generation
    }

    /// # Errors
    /// `RuntimeError` in a forked child: its poller is the parent's.
    pub fn check_process(&self) -> PyResult<()> {
        if self.is_own_process() {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(
            "The event loop belongs to the parent process; create a new one after fork()",
        ))
    }

    /// Does something with the registrar, unless the loop is closed or the process another one.
    fn registrar<R>(&self, f: impl FnOnce(&Registrar) -> io::Result<R>) -> PyResult<R> {
        self.check_process()?;
        match &*self.registrar.borrow() {
            Some(registrar) => {
                f(registrar).map_err(|error| Python::attach(|py| os_error(py, &error)))
            }
            None => Err(PyRuntimeError::new_err("Event loop is closed")),
        }
    }

    /// Adds a native edge-triggered source.
    ///
    /// # Errors
    /// `OSError` when the descriptor cannot be polled.
    pub fn add_native(&self, fd: RawFd, target: Py<PyAny>, on_event: OnEvent) -> PyResult<Key> {
        let source = Source::Native { target: Target::Held(target), on_event };
        let key = self.sources.borrow_mut().insert(source);
        let added = self.registrar(|registrar| registrar.add_edge(fd, key));
        self.undo_unless_added(key, added)
    }

    /// Adds a native level-triggered source that waits for reading (a listener).
    ///
    /// # Errors
    /// `OSError` when the descriptor cannot be polled.
    pub fn add_listener(&self, fd: RawFd, target: Py<PyAny>, on_event: OnEvent) -> PyResult<Key> {
        let source = Source::Native { target: Target::Held(target), on_event };
        let key = self.sources.borrow_mut().insert(source);
        let watch = Watch { read: true, write: false };
        let added = self.registrar(|registrar| registrar.add_level(fd, key, watch));
        self.undo_unless_added(key, added)
    }

    /// Changes how the loop holds a native source.
    pub fn hold(&self, key: Key, how: Target) {
        let old = match self.sources.borrow_mut().get_mut(key) {
            Some(Source::Native { target, .. }) => std::mem::replace(target, how),
            _ => how,
        };
        drop(old);
    }

    /// The transport that uses a descriptor, if it is still there.
    pub fn transport_of<'py>(&self, py: Python<'py>, fd: RawFd) -> Option<Bound<'py, PyAny>> {
        let transport = self.transports.borrow().get(&fd).map(|weak| weak.clone_ref(py))?;
        transport.bind(py).upgrade()
    }

    fn undo_unless_added(&self, key: Key, added: PyResult<()>) -> PyResult<Key> {
        match added {
            Ok(()) => Ok(key),
            Err(error) => {
                // The source is dropped after the borrow has ended.
                let removed = self.sources.borrow_mut().remove(key);
                drop(removed);
                Err(error)
            }
        }
    }

    /// Removes a native source. Must come before its descriptor is closed; `fd` is -1 when somebody
    /// else has closed it already.
    pub fn remove_native(&self, fd: RawFd, key: Key) {
        let removed = self.sources.borrow_mut().remove(key);
        if removed.is_some() && fd >= 0 && self.is_own_process() {
            if let Some(registrar) = &*self.registrar.borrow() {
                // Gone already means that the kernel was first, which is as good.
                let _ = registrar.remove(fd);
            }
        }
        drop(removed);
    }
}

impl Loop {
    /// The loop's state.
    #[inline]
    pub fn state<'a>(&'a self, py: Python<'a>) -> &'a State {
        self.state.get(py)
    }
}

#[pymethods]
impl Loop {
    #[new]
    #[pyo3(signature = (*, debug=false))]
    fn new(py: Python<'_>, debug: bool) -> PyResult<Self> {
        let state = State::new(debug).map_err(|error| os_error(py, &error))?;
        Ok(Loop { state: Confined::new(state) })
    }

    /// Run until stop() is called.
    fn run_forever(slf: &Bound<'_, Self>) -> PyResult<()> {
        life_cycle::run_forever(slf)
    }

    /// Run until the future or coroutine is done; return its result or raise its exception.
    fn run_until_complete<'py>(
        slf: &Bound<'py, Self>,
        future: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        life_cycle::run_until_complete(slf, future)
    }

    /// Stop after the current turn: callbacks that are ready now still run.
    fn stop(slf: &Bound<'_, Self>) {
        slf.get().state(slf.py()).stopping.set(true);
    }

    /// Whether the loop runs.
    fn is_running(slf: &Bound<'_, Self>) -> bool {
        slf.get().state(slf.py()).thread_id.get().is_some()
    }

    /// Whether the loop was closed.
    fn is_closed(slf: &Bound<'_, Self>) -> bool {
        slf.get().state(slf.py()).closed.get()
    }

    /// Give back what the loop holds: descriptors, handles, sources.
    fn _close(slf: &Bound<'_, Self>) -> PyResult<()> {
        life_cycle::close(slf)
    }

    fn _check_closed(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().state(slf.py()).check_closed()
    }

    /// Debug mode: refuse callbacks that are coroutines or cannot be called.
    fn _check_callback(
        slf: &Bound<'_, Self>,
        callback: &Bound<'_, PyAny>,
        method: &str,
    ) -> PyResult<()> {
        debug::check_call(slf, callback, method, false)
    }

    /// Wake the loop from any thread.
    fn _write_to_self(slf: &Bound<'_, Self>) {
        slf.get().state(slf.py()).wake();
    }

    /// Set what create_task() calls to make a task; None for the default.
    fn set_task_factory(slf: &Bound<'_, Self>, factory: &Bound<'_, PyAny>) -> PyResult<()> {
        tasks::set_factory(slf, factory)
    }

    /// The task factory, or None.
    fn get_task_factory(slf: &Bound<'_, Self>) -> Option<Py<PyAny>> {
        let py = slf.py();
        slf.get().state(py).task_factory.borrow().as_ref().map(|f| f.clone_ref(py))
    }

    /// Switch debug mode on or off.
    fn set_debug(slf: &Bound<'_, Self>, enabled: &Bound<'_, PyAny>) -> PyResult<()> {
        debug::set(slf, enabled.is_truthy()?)
    }

    /// Switch the tracking of where coroutines are created on or off.
    fn _set_coroutine_origin_tracking(slf: &Bound<'_, Self>, enabled: bool) -> PyResult<()> {
        let py = slf.py();
        debug::track_origins(py, slf.get().state(py), enabled)
    }

    #[getter(_debug)]
    fn debug(slf: &Bound<'_, Self>) -> bool {
        slf.get().state(slf.py()).debug.get()
    }

    #[setter(_debug)]
    fn assign_debug(slf: &Bound<'_, Self>, enabled: bool) {
        slf.get().state(slf.py()).debug.set(enabled);
    }

    /// Debug mode: callbacks that take at least so many seconds are logged.
    #[getter]
    fn slow_callback_duration(slf: &Bound<'_, Self>) -> f64 {
        slf.get().state(slf.py()).slow_callback_duration.get()
    }

    #[setter(slow_callback_duration)]
    fn set_slow_callback_duration(slf: &Bound<'_, Self>, seconds: f64) {
        slf.get().state(slf.py()).slow_callback_duration.set(seconds);
    }

    /// The identifier of the thread that runs the loop, or None.
    #[getter]
    fn _thread_id(slf: &Bound<'_, Self>) -> Option<u64> {
        slf.get().state(slf.py()).thread_id.get()
    }

    /// The handle that runs, in debug mode.
    #[getter]
    fn _current_handle<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        let py = slf.py();
        slf.get().state(py).current_handle.borrow().as_ref().map(|handle| handle.bind(py))
    }

    /// Set the exception handler, `handler(loop, context)`; None for the default.
    fn set_exception_handler(slf: &Bound<'_, Self>, handler: &Bound<'_, PyAny>) -> PyResult<()> {
        exceptions::set_handler(slf, handler)
    }

    /// The exception handler, or None.
    fn get_exception_handler(slf: &Bound<'_, Self>) -> Option<Py<PyAny>> {
        let py = slf.py();
        slf.get().state(py).exception_handler.borrow().as_ref().map(|f| f.clone_ref(py))
    }

    /// Call the callback each time the descriptor can be read.
    #[pyo3(signature = (fd, callback, *args))]
    fn add_reader(
        slf: &Bound<'_, Self>,
        fd: &Bound<'_, PyAny>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        watching::add(slf, fd, watching::Side::Read, callback, args)
    }

    /// Stop calling for reading; whether there was a callback.
    fn remove_reader(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        watching::remove(slf, fd, watching::Side::Read)
    }

    /// Call the callback each time the descriptor can be written.
    #[pyo3(signature = (fd, callback, *args))]
    fn add_writer(
        slf: &Bound<'_, Self>,
        fd: &Bound<'_, PyAny>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        watching::add(slf, fd, watching::Side::Write, callback, args)
    }

    /// Stop calling for writing; whether there was a callback.
    fn remove_writer(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        watching::remove(slf, fd, watching::Side::Write)
    }

    /// Receive up to n bytes from the socket.
    fn sock_recv(slf: &Bound<'_, Self>, sock: Py<PyAny>, n: usize) -> PyResult<Coroutine> {
        sock::recv(slf, sock, n)
    }

    /// Receive into a writable buffer; return the number of bytes.
    fn sock_recv_into(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        buf: Py<PyAny>,
    ) -> PyResult<Coroutine> {
        sock::recv_into(slf, sock, buf)
    }

    /// Receive a datagram of up to bufsize bytes; return it with its sender's address.
    fn sock_recvfrom(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        bufsize: usize,
    ) -> PyResult<Coroutine> {
        sock::recvfrom(slf, sock, bufsize)
    }

    /// Receive a datagram into a writable buffer; return its size and its sender's address.
    #[pyo3(signature = (sock, buf, nbytes=0))]
    fn sock_recvfrom_into(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        buf: Py<PyAny>,
        nbytes: usize,
    ) -> PyResult<Coroutine> {
        sock::recvfrom_into(slf, sock, buf, nbytes)
    }

    /// Send all data to the socket.
    fn sock_sendall(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        data: Py<PyAny>,
    ) -> PyResult<Coroutine> {
        sock::sendall(slf, sock, data)
    }

    /// Send a datagram to the address; return the number of bytes sent.
    fn sock_sendto(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        data: Py<PyAny>,
        address: Py<PyAny>,
    ) -> PyResult<Coroutine> {
        sock::sendto(slf, sock, data, address)
    }

    /// Accept a connection; return its socket and the peer's address.
    fn sock_accept(slf: &Bound<'_, Self>, sock: Py<PyAny>) -> PyResult<Coroutine> {
        sock::accept(slf, sock)
    }

    /// Connect the socket to an address that is resolved already.
    fn _sock_connect(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        address: Py<PyAny>,
    ) -> PyResult<Coroutine> {
        sock::connect(slf, sock, address)
    }

    /// Send a file over a socket by the system call.
    #[pyo3(signature = (sock, file, offset, count))]
    fn _sock_sendfile_native(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        file: Py<PyAny>,
        offset: u64,
        count: Option<u64>,
    ) -> Coroutine {
        sendfile::to_socket(slf, sock, file, offset, count)
    }

    /// Send a file over a transport by the system call.
    #[pyo3(signature = (transport, file, offset, count))]
    fn _sendfile_native(
        slf: &Bound<'_, Self>,
        transport: Bound<'_, SocketTransport>,
        file: Py<PyAny>,
        offset: u64,
        count: Option<u64>,
    ) -> Coroutine {
        sendfile::to_transport(slf, transport, file, offset, count)
    }

    /// Make a transport of a connected stream socket, which then belongs to it.
    #[pyo3(signature = (sock, protocol, waiter=None, *, extra=None, server=None))]
    fn _make_socket_transport<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
        server: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, SocketTransport>> {
        SocketTransport::adopt(slf, sock, protocol, waiter, extra, server)
    }

    /// Make a transport of a datagram socket, which then belongs to it.
    #[pyo3(signature = (sock, protocol, address=None, waiter=None, extra=None))]
    fn _make_datagram_transport<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        address: Option<Bound<'py, PyAny>>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, DatagramTransport>> {
        DatagramTransport::open(slf, sock, protocol, address, waiter, extra)
    }

    /// Make a transport that reads from a pipe, which then belongs to it.
    #[pyo3(signature = (pipe, protocol, waiter=None, extra=None))]
    fn _make_read_pipe_transport<'py>(
        slf: &Bound<'py, Self>,
        pipe: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, ReadPipeTransport>> {
        ReadPipeTransport::adopt(slf, pipe, protocol, waiter, extra)
    }

    /// Make a transport that writes to a pipe, which then belongs to it.
    #[pyo3(signature = (pipe, protocol, waiter=None, extra=None))]
    fn _make_write_pipe_transport<'py>(
        slf: &Bound<'py, Self>,
        pipe: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, WritePipeTransport>> {
        WritePipeTransport::adopt(slf, pipe, protocol, waiter, extra)
    }

    /// The open transport that uses the descriptor, or None.
    fn _transport_of(slf: &Bound<'_, Self>, fd: RawFd) -> Option<Py<PyAny>> {
        let py = slf.py();
        slf.get().state(py).transport_of(py, fd).map(Bound::unbind)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.state.in_traverse(&visit) {
            Some(state) => traverse(state, &visit),
            None => Ok(()),
        }
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let state = slf.get().state(slf.py());
        life_cycle::drop_work(state);
        state.task_factory.take();
        state.exception_handler.take();
        state.saved_hooks.take();
    }
}

/// A state that is borrowed at this moment is in use, so it is no garbage: not visiting what it
/// holds makes the collector think just that.
fn traverse(state: &State, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
    fn watcher(watcher: Option<&Watcher>, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match watcher {
            Some(Watcher::Handle(handle)) => handle.traverse(visit),
            Some(Watcher::Future(object) | Watcher::Native(object, _)) => visit.call(object),
            None => Ok(()),
        }
    }
    for ready in state.ready.try_borrow().iter().flat_map(|ready| ready.iter()) {
        match ready {
            Ready::Handle(handle) => handle.traverse(visit)?,
            Ready::Step(target, _) => visit.call(target)?,
        }
    }
    for handle in state.timers.try_borrow().iter().flat_map(|timers| timers.iter()) {
        handle.traverse(visit)?;
    }
    for handle in state.due.try_borrow().iter().flat_map(|due| due.iter()) {
        handle.traverse(visit)?;
    }
    for (_, source) in state.sources.try_borrow().iter().flat_map(|sources| sources.iter()) {
        match source {
            Source::Watched { reader, writer, .. } => {
                watcher(reader.as_ref(), visit)?;
                watcher(writer.as_ref(), visit)?;
            }
            Source::Native { target: Target::Held(target), .. } => visit.call(target)?,
            Source::Native { target: Target::Dormant(_), .. } => {}
        }
    }
    for field in [&state.task_factory, &state.exception_handler, &state.saved_hooks] {
        if let Ok(field) = field.try_borrow() {
            visit.call(&*field)?;
        }
    }
    Ok(())
}
