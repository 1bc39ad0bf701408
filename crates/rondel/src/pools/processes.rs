//! The process pool: submitting calls, the pool's thread, and a loop that collects answers itself.
//!
//! [`rondel_pool::processes`] does the work; here it meets Python. Calls are pickled by whoever submits
//! them. Answers are collected by the pool's own thread (a `threading.Thread` that runs
//! [`ProcessPool::_serve`], without the GIL while it waits), or, while all calls under way are those of
//! one event loop, by that loop: the workers then ring a descriptor in the loop's poller, and an answer
//! takes one wake-up rather than two.
//!
//! Processes are started by `rondel.pools.processes` through multiprocessing, whose rules for
//! `__main__` are thereby ours.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::{Arc, Weak};

use pyo3::exceptions::{PyAttributeError, PyRuntimeError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyDict, PyList, PyString, PyTuple, PyWeakref, PyWeakrefMethods, PyWeakrefReference,
};
use rondel_pool::processes::board::{Listener, Stage};
use rondel_pool::processes::frame::{Buffer, Kind, Message};
use rondel_pool::processes::parent::{self, Cause, News, Parent};
use rondel_reactor::fork;
use rondel_reactor::poller::Readiness;
use rondel_reactor::slab::Key;

use super::process_call::{self, Call, Target};
use super::process_pickle::Coders;
use crate::errors::{exception, os_error};
use crate::event_loop::Loop;
use crate::event_loop::debug::thread_ident;
use crate::ffi::confined::Confined;
use crate::ffi::shared_buffer::{Piece, SharedBuffer};
use crate::transport::gathering::Announcer;

/// Workers that may be killed in a row before they have taken a call.
const STILLBORN: u32 = 5;

/// What the pool, its thread and its calls have in common.
pub struct Core {
    pub parent: Parent<Py<Call>, Piece>,
    coders: Coders,
    /// The process that made the pool.
    generation: u32,
    ear: Confined<RefCell<Option<Ear>>>,
    fate: Confined<RefCell<Fate>>,
}

impl Announcer for Core {
    fn announce(&self) {
        if self.is_own_process() {
            self.parent.announce();
        }
    }
}

/// The loop that collects answers itself.
struct Ear {
    event_loop: Py<PyWeakref>,
    key: Key,
}

enum Fate {
    Open,
    Shut,
    /// Why the pool is not usable any more: an exception.
    Broken(Py<PyAny>),
}

impl Core {
    /// Whether this process made the pool.
    pub fn is_own_process(&self) -> bool {
        fork::generation() == self.generation
    }

    /// # Errors
    /// What submit() raises when the pool takes no calls.
    fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        if !self.is_own_process() {
            return Err(PyRuntimeError::new_err(
                "The process pool belongs to the parent process; create a new one after fork()",
            ));
        }
        match &*self.fate.get(py).borrow() {
            Fate::Open => Ok(()),
            Fate::Shut => {
                Err(PyRuntimeError::new_err("cannot schedule new futures after shutdown"))
            }
            Fate::Broken(error) => Err(anew(error.bind(py))),
        }
    }

    fn close(&self, py: Python<'_>) {
        let mut fate = self.fate.get(py).borrow_mut();
        if matches!(*fate, Fate::Open) {
            *fate = Fate::Shut;
        }
        drop(fate);
        self.parent.close();
    }

    /// The pool cannot go on: everything that was submitted fails, and so does what will be.
    fn fail(self: &Arc<Self>, py: Python<'_>, error: &Bound<'_, PyAny>) {
        let old = self.fate.get(py).replace(Fate::Broken(error.clone().unbind()));
        drop(old);
        self.parent.close();
        for (call, _) in self.parent.withdraw_all() {
            process_call::deliver(call.bind(py), Err(anew(error)), None);
        }
        self.parent.signal_all(libc::SIGKILL);
    }

    /// Pickles a call and submits it. An error of pickling is the call's. `collector` is the loop that
    /// collects its answer, if one does.
    fn submit(
        self: &Arc<Self>,
        call: &Bound<'_, Call>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        limit: Option<f64>,
        collector: Option<&Bound<'_, Loop>>,
    ) -> PyResult<()> {
        let py = call.py();
        let tuple = match kwargs {
            Some(kwargs) if !kwargs.is_empty() => {
                PyTuple::new(py, [function, args.as_any(), kwargs.as_any()])?
            }
            _ => PyTuple::new(py, [function, args.as_any()])?,
        };
        let locate = |bytes: &[u8]| self.parent.locate(bytes);
        let message = match self.coders.pickle(&tuple, Kind::Call, &locate) {
            Ok(message) => message,
            Err(error) => {
                process_call::deliver(call, Err(error), None);
                return Ok(());
            }
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let limit = limit.map(|seconds| (seconds.max(0.0) * 1e9) as u64);
        let target = call.clone().unbind();
        let loop_state = collector.map(|event_loop| event_loop.get().state(py));
        let by_loop = loop_state.is_some();
        let running = loop_state.filter(|state| state.thread_id.get() == Some(thread_ident()));
        let gathers = running.is_some();
        let submitted =
            self.parent.submit(parent::Call { target, message, limit, by_loop, gathers });
        let (id, spent, is_owed) = submitted;
        if let Some(state) = running.filter(|_| is_owed) {
            state.gathered.add_pool(self.clone());
        }
        call.get().set_place(py, self, id);
        drop(spent);
        Ok(())
    }

    /// Whether this loop collects answers itself, from now on if no other one does.
    fn listens(self: &Arc<Self>, event_loop: &Bound<'_, Loop>) -> PyResult<bool> {
        let py = event_loop.py();
        let current = self.ear.get(py).borrow().as_ref().map(|ear| ear.event_loop.clone_ref(py));
        if let Some(current) = current.and_then(|weak| weak.bind(py).upgrade()) {
            if current.is(event_loop) {
                return Ok(true);
            }
            if !current.cast::<Loop>()?.get().state(py).closed.get() {
                return Ok(false);
            }
        }
        let bell = self.parent.descriptors()[2];
        let listener = Bound::new(py, LoopEar { core: Arc::downgrade(self) })?;
        let state = event_loop.get().state(py);
        let key = state.add_native(bell, listener.into_any().unbind(), collect_on_loop)?;
        let event_loop = PyWeakrefReference::new(event_loop)?.cast_into::<PyWeakref>()?.unbind();
        let old = self.ear.get(py).replace(Some(Ear { event_loop, key }));
        drop(old);
        Ok(true)
    }

    /// The loop is no longer told of answers.
    fn stop_listening(&self, py: Python<'_>) {
        let Some(ear) = self.ear.get(py).take() else { return };
        if let Some(event_loop) = ear.event_loop.bind(py).upgrade()
            && let Ok(event_loop) = event_loop.cast::<Loop>()
        {
            let state = event_loop.get().state(py);
            if !state.closed.get() {
                state.remove_native(self.parent.descriptors()[2], ear.key);
            }
        }
    }
}

/// An exception like this one, for somebody to raise: what is raised keeps the frames it went through,
/// and the one that the pool keeps would keep the pool by those.
fn anew(error: &Bound<'_, PyAny>) -> PyErr {
    let py = error.py();
    let like = || {
        let args = error.getattr(intern!(py, "args"))?.cast_into::<PyTuple>()?;
        let like = error.get_type().call1(args)?;
        like.setattr(intern!(py, "__cause__"), error.getattr(intern!(py, "__cause__"))?)?;
        Ok(PyErr::from_value(like))
    };
    like().unwrap_or_else(|error: PyErr| error)
}

/// `rondel.ProcessPool` and its `submit`, once there is such a class.
static FRONT: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();

/// The class that users have, and its `submit`; None while it is not imported.
pub fn front(py: Python<'_>) -> Option<(&Py<PyAny>, &Py<PyAny>)> {
    FRONT.get(py).map(|(class, submit)| (class, submit))
}

/// `loop.run_in_executor()` of a pool with these attributes.
pub fn run_of<'py>(
    pool: &Bound<'py, PyAny>,
    attributes: &Bound<'py, PyDict>,
    event_loop: &Bound<'py, Loop>,
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = pool.py();
    let attribute = |name: &Bound<'py, PyString>| {
        let found = attributes.get_item(name)?;
        found.ok_or_else(|| PyAttributeError::new_err(name.clone().unbind()))
    };
    let native = attribute(intern!(py, "_native"))?.cast_into::<ProcessPool>()?;
    let limit = attribute(intern!(py, "_limit"))?.extract()?;
    let kills = attribute(intern!(py, "_kills"))?.is_truthy()?;
    let future = native.get().run_for(event_loop, function, args, limit, kills)?;
    if attribute(intern!(py, "_thread"))?.is_none() {
        pool.call_method0(intern!(py, "_start_thread"))?;
    }
    Ok(future)
}

/// What stands in the loop's table of sources.
#[pyclass(frozen, module = "rondel._rondel", name = "ProcessPoolEar")]
struct LoopEar {
    core: Weak<Core>,
}

/// The workers have rung for the loop.
fn collect_on_loop(target: &Bound<'_, PyAny>, _readiness: Readiness) -> PyResult<()> {
    let py = target.py();
    let Some(core) = target.cast::<LoopEar>()?.get().core.upgrade() else { return Ok(()) };
    if !core.is_own_process() {
        return Ok(());
    }
    let ear = core.ear.get(py).borrow().as_ref().map(|ear| ear.event_loop.clone_ref(py));
    let here = ear.and_then(|weak| weak.bind(py).upgrade());
    let here = here.as_ref().and_then(|here| here.cast::<Loop>().ok());
    let mut news = News::default();
    core.parent.collect(Listener::Loop, &mut news);
    process_call::deliver_all(py, news.finished, here);
    Ok(())
}

/// The native part of `rondel.ProcessPool`.
#[pyclass(frozen, module = "rondel._rondel", name = "ProcessPool")]
pub struct ProcessPool {
    core: Arc<Core>,
}

#[pymethods]
impl ProcessPool {
    #[new]
    fn new(py: Python<'_>, max_workers: usize) -> PyResult<Self> {
        let parent = Parent::new(max_workers).map_err(|error| os_error(py, &error))?;
        Ok(ProcessPool {
            core: Arc::new(Core {
                parent,
                coders: Coders::new(),
                generation: fork::generation(),
                ear: Confined::new(RefCell::new(None)),
                fate: Confined::new(RefCell::new(Fate::Open)),
            }),
        })
    }

    /// Submit a call whose end is set on a concurrent.futures.Future; return its handle. `limit` is the
    /// most seconds that it may run; with `kills` its cancellation kills the worker that runs it.
    fn submit<'py>(
        &self,
        future: &Bound<'py, PyAny>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
        limit: Option<f64>,
        kills: bool,
    ) -> PyResult<Bound<'py, Call>> {
        let py = future.py();
        self.core.check_open(py)?;
        let call = Bound::new(py, Call::new(Target::Concurrent(future.clone().unbind()), kills))?;
        self.core.submit(&call, function, args, Some(kwargs), limit, None)?;
        Ok(call)
    }

    /// Submit a call whose end is set on a new future of the loop, and return that.
    fn run_for<'py>(
        &self,
        event_loop: &Bound<'py, Loop>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        limit: Option<f64>,
        kills: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = event_loop.py();
        self.core.check_open(py)?;
        let listens = self.core.listens(event_loop)?;
        // Through the attribute: programs override it.
        let future = event_loop.call_method0(intern!(py, "create_future"))?;
        let target = Target::Loop(event_loop.clone().unbind(), future.clone().unbind());
        let call = Bound::new(py, Call::new(target, kills))?;
        future.call_method1(intern!(py, "add_done_callback"), (&call,))?;
        self.core.submit(&call, function, args, None, limit, listens.then_some(event_loop))?;
        Ok(future)
    }

    /// Calls of `loop.run_in_executor()` in objects of this class may go past its `submit`.
    #[staticmethod]
    #[pyo3(signature = (class, /))]
    fn set_front(py: Python<'_>, class: &Bound<'_, PyAny>) -> PyResult<()> {
        let submit = class.getattr(intern!(py, "submit"))?.unbind();
        // A second time only where somebody has imported the module anew.
        let _ = FRONT.set(py, (class.clone().unbind(), submit));
        Ok(())
    }

    /// The descriptors that a worker inherits.
    fn descriptors(&self) -> [RawFd; 3] {
        self.core.parent.descriptors()
    }

    /// What the pool's thread holds instead of the pool, so that a forgotten pool can go.
    fn server(&self) -> ProcessServer {
        ProcessServer { core: self.core.clone() }
    }

    /// Take no more calls; with `cancel` those that no worker has begun are cancelled.
    fn close(&self, py: Python<'_>, cancel: bool) -> PyResult<()> {
        if !self.core.is_own_process() {
            return Ok(());
        }
        self.core.close(py);
        if cancel {
            for (call, _) in self.core.parent.withdraw_all() {
                process_call::cancel(call.bind(py))?;
            }
        }
        Ok(())
    }

    /// Send a signal to all workers, and fail what was submitted.
    fn end_workers(&self, py: Python<'_>, signal: i32, error: &Bound<'_, PyAny>) {
        if self.core.is_own_process() {
            self.core.close(py);
            for (call, _) in self.core.parent.withdraw_all() {
                process_call::deliver(call.bind(py), Err(PyErr::from_value(error.clone())), None);
            }
            self.core.parent.signal_all(signal);
        }
    }

    /// An object like the given one, whose buffers lie in the pool's shared memory.
    fn share_object<'py>(&self, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = object.py();
        self.core.check_open(py)?;
        let locate = |bytes: &[u8]| self.core.parent.locate(bytes);
        let message = self.core.coders.pickle(object, Kind::Call, &locate)?;
        let Message { pickle, buffers, .. } = message;
        if buffers.is_empty() {
            return Err(PyTypeError::new_err(format!(
                "{} has no buffers of at least 16 KiB that pickle passes on out of band",
                object.get_type().name()?
            )));
        }
        if buffers.iter().all(|buffer| matches!(buffer, Buffer::Placed(_))) {
            return Ok(object.clone());
        }
        let places = PyList::empty(py);
        for buffer in &buffers {
            let len = match buffer {
                Buffer::Placed(reference) => usize::try_from(reference.len)?,
                Buffer::Copy(piece) => piece.as_ref().len(),
            };
            let lease = self.core.parent.allocate(len).map_err(|error| os_error(py, &error))?;
            match buffer {
                Buffer::Copy(piece) => py.detach(|| lease.view().write(0, piece.as_ref())),
                Buffer::Placed(reference) => {
                    let from = self.core.parent.view(reference);
                    let from = from.map_err(|error| os_error(py, &error))?;
                    py.detach(|| lease.view().copy_from(&from));
                }
            }
            places.append(Bound::new(py, SharedBuffer::leased(lease))?)?;
        }
        let bytes: Vec<u8> = pickle.iter().flat_map(|piece| piece.as_ref().to_vec()).collect();
        let options = PyDict::new(py);
        options.set_item(intern!(py, "buffers"), places)?;
        let data = pyo3::types::PyBytes::new(py, &bytes);
        crate::imports::pickle_loads(py)?.call((data,), Some(&options))
    }

    /// So many bytes of the pool's shared memory. What they hold is not known.
    fn share_bytes<'py>(&self, py: Python<'py>, size: usize) -> PyResult<Bound<'py, SharedBuffer>> {
        self.core.check_open(py)?;
        let lease = self.core.parent.allocate(size).map_err(|error| os_error(py, &error))?;
        Bound::new(py, SharedBuffer::leased(lease))
    }

    /// Calls that are not at their end.
    #[getter]
    fn outstanding(&self) -> usize {
        self.core.parent.outstanding()
    }

    /// Blocks of shared memory in use.
    #[getter]
    fn blocks(&self) -> usize {
        self.core.parent.blocks()
    }

    /// False, or the exception that tells why the pool is not usable any more.
    #[getter]
    fn _broken(&self, py: Python<'_>) -> Py<PyAny> {
        match &*self.core.fate.get(py).borrow() {
            Fate::Broken(error) => error.clone_ref(py),
            _ => pyo3::types::PyBool::new(py, false).to_owned().into_any().unbind(),
        }
    }

    /// Whether the pool takes no more calls.
    #[getter]
    fn _shutdown(&self, py: Python<'_>) -> bool {
        matches!(&*self.core.fate.get(py).borrow(), Fate::Shut)
    }
}

/// What the pool's thread runs.
#[pyclass(frozen, module = "rondel._rondel", name = "ProcessServer")]
pub struct ProcessServer {
    core: Arc<Core>,
}

#[pymethods]
impl ProcessServer {
    /// Start workers, deliver answers, replace the dead, until the pool is closed and all is done.
    /// `workers` starts and buries processes (`rondel.pools.processes.Workers`).
    fn serve(&self, py: Python<'_>, workers: &Bound<'_, PyAny>) -> PyResult<()> {
        let result = self.run(py, workers);
        self.core.stop_listening(py);
        result
    }

    /// Close the pool, whatever is left to do being done: its object has gone, or the program ends.
    fn close(&self, py: Python<'_>) {
        if self.core.is_own_process() {
            self.core.close(py);
        }
    }
}

impl ProcessServer {
    fn run(&self, py: Python<'_>, workers: &Bound<'_, PyAny>) -> PyResult<()> {
        let core = &self.core;
        let mut stillborn = 0;
        loop {
            let news = py.detach(|| core.parent.wait());
            let News { finished, refused, ended, missing, is_over, spent } =
                news.map_err(|error| os_error(py, &error))?;
            drop(spent);
            process_call::deliver_all(py, finished, None);
            for (call, error) in refused {
                process_call::deliver(call.bind(py), Err(os_error(py, &error)), None);
            }
            for berth in ended {
                self.bury(workers, berth, &mut stillborn)?;
            }
            for _ in 0..missing {
                if !self.start(workers)? {
                    break;
                }
            }
            if is_over {
                return Ok(());
            }
        }
    }

    /// Deals with a worker's end.
    fn bury(&self, workers: &Bound<'_, PyAny>, berth: usize, stillborn: &mut u32) -> PyResult<()> {
        let py = workers.py();
        let core = &self.core;
        let mut news = News::default();
        let lost = core.parent.lost(berth, &mut news);
        process_call::deliver_all(py, news.finished, None);
        drop(news.spent);
        // How it died, in words, and whether somebody has killed it.
        let end = workers.call_method1(intern!(py, "ended"), (berth,))?;
        let (how, is_killed): (Bound<'_, PyAny>, bool) = end.extract()?;
        if let Some((call, cause)) = lost.failed {
            let cause = match cause {
                Cause::Died => "died",
                Cause::Limit => "limit",
                Cause::Killed => "killed",
            };
            let error = workers.call_method1(intern!(py, "error"), (cause, &how))?;
            process_call::deliver(call.bind(py), Err(PyErr::from_value(error)), None);
        }
        core.parent.vacate(berth);
        match lost.stage {
            Stage::Working | Stage::Leaving => *stillborn = 0,
            Stage::Starting => {
                *stillborn += 1;
                if !is_killed || *stillborn >= STILLBORN {
                    core.fail(py, &workers.call_method1(intern!(py, "error"), ("start", &how))?);
                }
            }
            Stage::Unable => {
                core.fail(py, &workers.call_method1(intern!(py, "error"), ("initializer", &how))?);
            }
        }
        Ok(())
    }

    /// Starts a worker; false when the pool is broken by that.
    fn start(&self, workers: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = workers.py();
        let core = &self.core;
        let Some((berth, first)) = core.parent.reserve() else { return Ok(true) };
        let started = workers
            .call_method1(intern!(py, "start"), (berth, first))
            .and_then(|pid| pid.extract::<i32>());
        let pid = match started {
            Ok(pid) => pid,
            Err(error) => {
                core.parent.vacate(berth);
                let error = workers
                    .call_method1(intern!(py, "error"), ("unstarted", exception(py, &error)))?;
                core.fail(py, &error);
                return Ok(false);
            }
        };
        if let Err(error) = core.parent.started(berth, pid) {
            // It has ended already (and been waited for), or cannot be watched.
            let how = workers.call_method1(intern!(py, "abandon"), (berth,))?;
            core.parent.vacate(berth);
            let cause = os_error(py, &error);
            let error = workers.call_method1(intern!(py, "error"), ("start", how))?;
            error.setattr(intern!(py, "__cause__"), exception(py, &cause))?;
            core.fail(py, &error);
            return Ok(false);
        }
        Ok(true)
    }
}
