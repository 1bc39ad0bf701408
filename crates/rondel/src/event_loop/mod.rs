//! The `Loop` object: its state, and what each part of it is for.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`turn`] | one turn: poll, run what is ready, dispatch events, run timers |
//! | [`life_cycle`] | run_forever, run_until_complete, stop, close |
//! | [`nesting`] | running the loop again inside one of its own callbacks |
//! | [`tasks`] | create_task and task factories |
//! | [`watching`] | add_reader, add_writer and relatives: descriptors that the program watches |
//! | [`lasting`] | sockets that stay in the poller between the waits of sock_* |
//! | [`rehearsal`] | virtual time and a chosen order, for `rondel.testing` |
//! | [`sharing`] | letting other threads have the GIL while callbacks are ready |
//! | [`meter`] | what the loop counts while it runs |
//! | [`debug`] | debug mode: checks, origins, slow callbacks |
//! | `methods` | what Python calls, leading to the others |
//! | [`exceptions`] | handing errors to the exception handler |
//!
//! All state is confined to attached threads and belongs to the thread that runs the loop; the one
//! thing that other threads do is to push a handle and wake the loop, which the GIL makes safe. No
//! borrow of a `RefCell` is ever held across a call into Python.

pub mod debug;
pub mod exceptions;
pub mod lasting;
pub mod life_cycle;
pub mod meter;
mod methods;
mod nesting;
pub mod rehearsal;
pub mod sharing;
pub mod tasks;
pub mod turn;
pub mod watching;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyWeakref, PyWeakrefMethods};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::datagrams::Batch;
use rondel_reactor::fork;
use rondel_reactor::poller::{Event, Poller, Readiness, Registrar, Waker, Watch};
use rondel_reactor::slab::{Key, Slab};
use rondel_reactor::timers::Timers;

use self::meter::Meter;
use self::rehearsal::Rehearsal;
use self::sharing::Sharing;
use crate::errors::os_error;
use crate::ffi::confined::Confined;
use crate::ffi::handle::HandleRef;
use crate::ffi::queued_call::QueuedCall;
use crate::ffi::shared_context::Spare;
use crate::transport::{address::Shown, gathering::Gathered};
use crate::watch::Watching;

/// A step of native code on a Python object (a transport), scheduled like a callback.
pub type Step = fn(&Bound<'_, PyAny>) -> PyResult<()>;
/// What a native source does with its events.
pub type OnEvent = fn(&Bound<'_, PyAny>, Readiness) -> PyResult<()>;

/// What waits for its turn.
pub enum Ready {
    /// A callback of the program.
    Handle(HandleRef),
    /// A callback of the program whose handle nobody has.
    Call(QueuedCall),
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
    /// Those that stay in the poller although nobody may wait, by number.
    pub lasting: RefCell<HashMap<RawFd, Key>>,
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
    /// Callbacks of `ready` that belong to this turn.
    pub left: Cell<usize>,
    /// What the loop counts; shared with threads that read it without the GIL.
    pub meter: Arc<Meter>,
    /// Writes that leave together.
    pub gathered: Gathered,
    /// What callbacks of this turn have run in, and the next one may.
    pub spare_context: Spare,
    /// Where small reads land before they become `bytes`.
    pub scratch: RefCell<Vec<u8>>,
    /// What `sock_recv` received last was too large to be copied.
    pub receives_large: Cell<bool>,
    /// Where ciphertext lands before it is decrypted.
    pub ciphertext: RefCell<Vec<u8>>,
    /// Where datagrams land, from the first one on.
    pub datagrams: RefCell<Option<Box<Batch>>>,
    /// Who sent them.
    pub senders: Shown,
    /// When a turn last looked at the clock, in nanoseconds.
    pub last_look: Cell<u64>,
    /// Turns that may still go by without looking at it.
    pub blind_turns: Cell<u32>,
    /// When the loop last polled, in nanoseconds.
    pub last_poll: Cell<u64>,
    /// When the loop lets other threads have the GIL.
    pub sharing: Sharing,
    /// The loop waits, or is about to: whoever adds work must wake it.
    pub sleeping: Cell<bool>,
    pub closed: Cell<bool>,
    pub stopping: Cell<bool>,
    pub debug: Cell<bool>,
    /// Whether callbacks run under observation: somebody watches for those that block the loop, or a
    /// nested run has to know whose callback it is in.
    pub observed: Cell<bool>,
    /// Who watches for callbacks that block the loop.
    pub watching: RefCell<Option<Watching>>,
    /// Who directs a loop under test.
    pub director: RefCell<Option<Py<Rehearsal>>>,
    /// The thread that runs the loop (`threading.get_ident()`).
    pub thread_id: Cell<Option<u64>>,
    /// The process that made the loop: a forked child must not touch its poller.
    generation: u32,
    pub slow_callback_duration: Cell<f64>,
    pub task_factory: RefCell<Option<Py<PyAny>>>,
    pub exception_handler: RefCell<Option<Py<PyAny>>>,
    /// Whether the loop may run where one runs already.
    pub nesting: Cell<bool>,
    /// What the outermost run waits for.
    pub awaited: RefCell<Option<Py<PyAny>>>,
    /// How many runs are nested into it.
    pub nested_runs: Cell<u32>,
    /// stop() was meant for it while others were nested into it.
    pub stopping_outermost: Cell<bool>,
    /// How long callbacks were suspended by nested runs so far, in nanoseconds.
    pub time_nested: Cell<u64>,
    /// The handle that runs, in debug mode and where nesting is allowed.
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
            lasting: RefCell::default(),
            transports: RefCell::default(),
            poller: RefCell::new(Some(poller)),
            registrar: RefCell::new(Some(registrar)),
            waker: RefCell::new(Some(waker)),
            events: RefCell::default(),
            spare_events: RefCell::default(),
            left: Cell::new(0),
            meter: Arc::default(),
            gathered: Gathered::default(),
            spare_context: Spare::default(),
            scratch: RefCell::default(),
            receives_large: Cell::new(false),
            ciphertext: RefCell::default(),
            datagrams: RefCell::default(),
            senders: Shown::default(),
            last_look: Cell::new(0),
            blind_turns: Cell::new(0),
            last_poll: Cell::new(0),
            sharing: Sharing::default(),
            sleeping: Cell::new(false),
            closed: Cell::new(false),
            stopping: Cell::new(false),
            debug: Cell::new(debug),
            observed: Cell::new(false),
            watching: RefCell::default(),
            director: RefCell::default(),
            thread_id: Cell::new(None),
            generation: fork::generation(),
            slow_callback_duration: Cell::new(0.1),
            task_factory: RefCell::default(),
            exception_handler: RefCell::default(),
            nesting: Cell::new(false),
            awaited: RefCell::default(),
            nested_runs: Cell::new(0),
            stopping_outermost: Cell::new(false),
            time_nested: Cell::new(0),
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

    /// Before a handle is made: frees that of the callback that was queued last when memory is short and
    /// nobody has it. (A loop under test shows its director handles.)
    #[inline]
    pub fn reuse_last(&self, py: Python<'_>) {
        if !HandleRef::none_is_free(py) || self.director.borrow().is_some() {
            return;
        }
        // Dropped after the borrow, and empty.
        let _emptied = {
            let mut ready = self.ready.borrow_mut();
            let Some(last) = ready.back_mut() else { return };
            let Ready::Handle(handle) = last else { return };
            let Some(call) = QueuedCall::from_handle(handle) else { return };
            std::mem::replace(last, Ready::Call(call))
        };
    }

    /// Queues a step of native code for the next turn.
    pub fn push_step(&self, target: Py<PyAny>, step: Step) {
        self.ready.borrow_mut().push_back(Ready::Step(target, step));
    }

    /// Whether something waits for its turn beside the callback that runs now, or has just run and
    /// left writes to send.
    #[inline]
    pub fn has_more_to_run(&self) -> bool {
        self.left.get() > 0
            || !self.gathered.is_empty()
            || !self.events.borrow().is_empty()
            || !self.due.borrow().is_empty()
    }

    /// Puts a timer into the heap.
    #[inline]
    pub fn add_timer(&self, handle: HandleRef, deadline: u64) {
        handle.set_scheduled(true);
        self.timers.borrow_mut().push(deadline, handle);
    }

    /// A timer in the heap was cancelled: throws it out if that costs nothing, and all such timers once
    /// they are the majority.
    pub fn timer_cancelled(&self, timer: &HandleRef) {
        let last = self.timers.borrow_mut().take_last(|last| last.is(timer));
        if let Some(last) = last {
            last.set_scheduled(false);
            return;
        }
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

    /// Puts a step onto the ready queue from another thread; a closed loop drops it.
    pub fn send_step(&self, target: Py<PyAny>, step: Step) {
        if !self.closed.get() {
            self.push_step(target, step);
            self.wake();
        }
    }

    /// As [`State::wake`], but leaves it to the caller to ring, soon: when it has let go of the GIL,
    /// without which a woken loop could not do a thing.
    #[must_use]
    pub fn wake_later(&self) -> Option<Waker> {
        if self.sleeping.replace(false) { self.waker.borrow().clone() } else { None }
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
        // The borrow ends here: making an exception of an error calls Python.
        let outcome = self.registrar.borrow().as_ref().map(f);
        match outcome {
            Some(result) => result.map_err(|error| Python::attach(|py| os_error(py, &error))),
            None => Err(PyRuntimeError::new_err("Event loop is closed")),
        }
    }

    /// Adds a native edge-triggered source.
    ///
    /// # Errors
    /// `OSError` when the descriptor cannot be polled.
    pub fn add_native(&self, fd: RawFd, target: Py<PyAny>, on_event: OnEvent) -> PyResult<Key> {
        drop(lasting::displace(self, fd));
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
        drop(lasting::displace(self, fd));
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

    /// Hands a native source to another owner.
    pub fn redirect(&self, key: Key, target: Py<PyAny>, on_event: OnEvent) {
        let new = Source::Native { target: Target::Held(target), on_event };
        let old = match self.sources.borrow_mut().get_mut(key) {
            Some(source) => std::mem::replace(source, new),
            None => new,
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
            Ready::Call(call) => call.traverse(visit)?,
            Ready::Step(target, _) => visit.call(target)?,
        }
    }
    for watching in state.watching.try_borrow().iter().flat_map(|watching| watching.iter()) {
        watching.traverse(visit)?;
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
    state.spare_context.traverse(visit)?;
    if let Ok(director) = state.director.try_borrow() {
        visit.call(&*director)?;
    }
    for field in [&state.task_factory, &state.exception_handler, &state.saved_hooks] {
        if let Ok(field) = field.try_borrow() {
            visit.call(&*field)?;
        }
    }
    Ok(())
}
