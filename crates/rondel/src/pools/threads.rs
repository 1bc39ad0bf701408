//! The thread pool: a queue of calls, and what each of its threads does until its end.
//!
//! The threads are Python's own (`threading.Thread`), started by `rondel.pools.threads`; whom to wake
//! and when to start one more is decided by [`rondel_pool::threads::Crew`]. A thread runs
//! [`Worker::run`] from its start to its end. It rests without the GIL; with it, it takes one call
//! after the other for as long as there are any.
//!
//! A thread holds the queue, not the pool: when the program drops its pool, the threads do what is
//! queued and end.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rondel_pool::threads::{Crew, Next};
use rondel_reactor::fork;
use rondel_reactor::poller::Waker;

use super::thread_call::{self, Call, Target, Work};
use crate::event_loop::Loop;
use crate::ffi::confined::Confined;
use crate::ffi::context;
use crate::imports;

/// Calls after which a thread tells of what it has done, and looks at the clock.
const CALLS_PER_LOOK: u32 = 128;

/// How long a thread keeps the GIL at most. Calls that run no bytecode would never let go of it. To
/// let go of it sooner, before those who wait have asked for it (after the switch interval of 5 ms),
/// would have them begin their wait anew each time.
const LONGEST_HOLD: Duration = Duration::from_millis(20);

const BROKEN: &str = "A thread initializer failed, the thread pool is not usable anymore";

/// The interpreter is about to exit: no pool takes calls any more.
static EXITING: AtomicBool = AtomicBool::new(false);

/// What a pool and its threads have in common.
pub struct Shared {
    pub crew: Crew<Py<Call>>,
    fate: Confined<Cell<Fate>>,
    /// The process whose threads these are.
    generation: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Shut,
    /// The initializer failed in one of the threads.
    Broken,
}

impl Shared {
    fn new(max_workers: usize, patience: Option<Duration>, fate: Fate) -> Arc<Self> {
        Arc::new(Shared {
            crew: Crew::new(max_workers, patience),
            fate: Confined::new(Cell::new(fate)),
            generation: fork::generation(),
        })
    }

    /// # Errors
    /// What submit() raises when the pool takes no calls.
    fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        match self.fate.get(py).get() {
            Fate::Broken => Err(broken(py)),
            Fate::Shut => {
                Err(PyRuntimeError::new_err("cannot schedule new futures after shutdown"))
            }
            Fate::Open if EXITING.load(Ordering::Relaxed) => Err(PyRuntimeError::new_err(
                "cannot schedule new futures after interpreter shutdown",
            )),
            Fate::Open => Ok(()),
        }
    }
}

fn broken(py: Python<'_>) -> PyErr {
    match imports::broken_thread_pool(py).and_then(|class| class.call1((BROKEN,))) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// The native part of `rondel.ThreadPool`.
#[pyclass(subclass, frozen, module = "rondel._rondel", name = "ThreadPool")]
pub struct ThreadPool {
    shared: Confined<RefCell<Arc<Shared>>>,
    patience: Confined<Cell<Option<Duration>>>,
}

impl ThreadPool {
    fn shared(&self, py: Python<'_>) -> Arc<Shared> {
        self.shared.get(py).borrow().clone()
    }
}

#[pymethods]
impl ThreadPool {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        ThreadPool {
            shared: Confined::new(RefCell::new(Shared::new(1, None, Fate::Open))),
            patience: Confined::new(Cell::new(None)),
        }
    }

    /// Set the number of threads, and for how many seconds one of them rests before it ends.
    fn _open(&self, py: Python<'_>, max_workers: usize, idle_timeout: Option<f64>) -> PyResult<()> {
        let patience = match idle_timeout {
            Some(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|_| {
                PyValueError::new_err("idle_timeout must be a number of seconds >= 0, or None")
            })?),
            None => None,
        };
        self.patience.get(py).set(patience);
        drop(self.shared.get(py).replace(Shared::new(max_workers, patience, Fate::Open)));
        Ok(())
    }

    /// Schedule ``fn(*args, **kwargs)`` and return its concurrent.futures.Future.
    #[pyo3(signature = (r#fn, /, *args, **kwargs))]
    fn submit<'py>(
        slf: &Bound<'py, Self>,
        r#fn: Py<PyAny>,
        args: Bound<'py, PyTuple>,
        kwargs: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let shared = slf.get().shared(py);
        shared.check_open(py)?;
        let future = imports::concurrent_future(py)?.call0()?;
        let work = Work {
            function: r#fn,
            args: args.unbind(),
            kwargs: kwargs.map(Bound::unbind),
            context: None,
        };
        put(slf, shared, work, Target::Concurrent(future.clone().unbind()), &future)?;
        Ok(future)
    }

    /// Schedule a call whose outcome is a future of the loop. With ``carry`` it runs in a copy of the
    /// current context.
    #[pyo3(signature = (event_loop, function, args, kwargs=None, carry=false))]
    fn _run_for<'py>(
        slf: &Bound<'py, Self>,
        event_loop: &Bound<'py, Loop>,
        function: &Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        kwargs: Option<Bound<'py, PyDict>>,
        carry: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let context = if carry { Some(context::copy_current(slf.py())?.unbind()) } else { None };
        let work = Work {
            function: function.clone().unbind(),
            args: args.unbind(),
            kwargs: kwargs.map(Bound::unbind),
            context,
        };
        run_for(slf, event_loop, work)
    }

    /// Take no more calls; with ``cancel`` those that are queued are cancelled.
    fn _close(&self, py: Python<'_>, cancel: bool) -> PyResult<()> {
        let shared = self.shared(py);
        let fate = shared.fate.get(py);
        if fate.get() == Fate::Open {
            fate.set(Fate::Shut);
        }
        let cancelled = if cancel { shared.crew.drain() } else { Default::default() };
        shared.crew.close();
        for (_, call) in cancelled {
            thread_call::cancel(py, call.bind(py))?;
        }
        Ok(())
    }

    /// In a forked child, which has none of the threads: start anew, with an empty queue.
    fn _after_fork(&self, py: Python<'_>) {
        let cell = self.shared.get(py);
        let (max_workers, fate) = {
            let shared = cell.borrow();
            (shared.crew.max_workers(), shared.fate.get(py).get())
        };
        let old = cell.replace(Shared::new(max_workers, self.patience.get(py).get(), fate));
        if fate != Fate::Open {
            cell.borrow().crew.close();
        }
        // A thread of the parent may have held its lock at the fork: it is never touched again.
        std::mem::forget(old);
    }

    /// From now on no pool of the process takes calls.
    #[staticmethod]
    fn _interpreter_exits() {
        EXITING.store(true, Ordering::Relaxed);
    }

    #[getter]
    fn _max_workers(&self, py: Python<'_>) -> usize {
        self.shared(py).crew.max_workers()
    }

    #[getter]
    fn _queued(&self, py: Python<'_>) -> usize {
        self.shared(py).crew.queued()
    }

    #[getter]
    fn _shutdown(&self, py: Python<'_>) -> bool {
        self.shared(py).fate.get(py).get() == Fate::Shut
    }

    /// False, or why the pool is not usable any more.
    #[getter]
    fn _broken(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if self.shared(py).fate.get(py).get() == Fate::Broken {
            return Ok(BROKEN.into_pyobject(py)?.into_any().unbind());
        }
        Ok(false.into_pyobject(py)?.to_owned().into_any().unbind())
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        let shared = self.shared.get_mut().get_mut();
        if shared.generation == fork::generation() {
            shared.crew.close();
        }
    }
}

/// Schedules a call whose outcome is a future of the loop.
pub fn run_for<'py>(
    pool: &Bound<'py, ThreadPool>,
    event_loop: &Bound<'py, Loop>,
    work: Work,
) -> PyResult<Bound<'py, PyAny>> {
    let py = pool.py();
    let shared = pool.get().shared(py);
    shared.check_open(py)?;
    // Through the attribute: programs override it.
    let future = event_loop.call_method0(intern!(py, "create_future"))?;
    let target = Target::Loop(event_loop.clone().unbind(), future.clone().unbind());
    put(pool, shared, work, target, &future)?;
    Ok(future)
}

/// Queues a call, and wakes or starts a thread for it.
fn put(
    pool: &Bound<'_, ThreadPool>,
    shared: Arc<Shared>,
    work: Work,
    target: Target,
    future: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = pool.py();
    let call = Bound::new(py, Call::new(work, target))?;
    future.call_method1(intern!(py, "add_done_callback"), (&call,))?;
    let Ok(put) = shared.crew.put(call.clone().unbind()) else {
        return Err(PyRuntimeError::new_err("cannot schedule new futures after shutdown"));
    };
    let ticket = put.ticket;
    call.get().set_place(py, shared.clone(), ticket);
    put.wake.wake();
    let Some(number) = put.hire else { return Ok(()) };
    let worker = Worker { shared: shared.clone(), number };
    let started = pool.call_method1(intern!(py, "_start_thread"), (worker,));
    match started {
        Err(error) if error.is_instance_of::<PyRuntimeError>(py) && shared.crew.workers() > 0 => {
            // No more threads are to be had: those that there are will do.
            Ok(())
        }
        Err(error) => {
            drop(shared.crew.take_back(ticket));
            Err(error)
        }
        Ok(_) => Ok(()),
    }
}

/// What one thread of a pool runs.
#[pyclass(frozen, module = "rondel._rondel", name = "ThreadWorker")]
pub struct Worker {
    shared: Arc<Shared>,
    number: usize,
}

#[pymethods]
impl Worker {
    /// The worker's number in its pool, from 0 on.
    #[getter]
    fn number(&self) -> usize {
        self.number
    }

    /// Work until the pool is shut down, or nothing was to do for the pool's idle_timeout.
    fn run(&self, py: Python<'_>) {
        let crew = &self.shared.crew;
        // The loop to wake, once that makes sense: while this thread holds the GIL, a loop that is
        // woken could do nothing but wait for it.
        let mut wake: Option<Waker> = None;
        let mut held_since = Instant::now();
        let mut calls: u32 = 0;
        loop {
            let next = crew.next(self.number);
            match next {
                Next::Job(call, colleague) => {
                    // This call may last: what ended before it must not wait for its end.
                    ring(wake.take());
                    colleague.wake();
                    wake = thread_call::run(py, call.bind(py));
                    if self.shared.generation != fork::generation() {
                        // The call has forked, and this is the child: nobody is left to work for.
                        return;
                    }
                    calls += 1;
                    if calls == CALLS_PER_LOOK {
                        calls = 0;
                        ring(wake.take());
                        if held_since.elapsed() >= LONGEST_HOLD {
                            py.detach(|| ());
                            held_since = Instant::now();
                        }
                    }
                }
                Next::Idle => {
                    let wake = wake.take();
                    let stays = py.detach(|| {
                        ring(wake);
                        crew.rest(self.number)
                    });
                    if !stays {
                        return;
                    }
                    held_since = Instant::now();
                }
                Next::End => {
                    ring(wake);
                    return;
                }
            }
        }
    }

    /// The thread could not be started.
    fn dismiss(&self) {
        self.shared.crew.dismiss(self.number);
    }

    /// The initializer failed: the pool is broken, and all that is queued fails.
    fn fail(&self, py: Python<'_>) -> PyResult<()> {
        let shared = &self.shared;
        shared.crew.dismiss(self.number);
        shared.fate.get(py).set(Fate::Broken);
        let queued = shared.crew.drain();
        shared.crew.close();
        for (_, call) in queued {
            thread_call::fail(py, call.bind(py), broken(py))?;
        }
        Ok(())
    }
}

/// Wakes a loop. This can only fail when its descriptor is closed, and then nobody waits.
fn ring(wake: Option<Waker>) {
    if let Some(waker) = wake {
        let _ = waker.wake();
    }
}
