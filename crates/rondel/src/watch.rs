//! The watchdog: who blocks the loop?
//!
//! While a loop is watched, it stamps the start of each callback ([`Stamp`]). A thread looks at the
//! stamp every now and then; when the same callback has run for half the threshold, it takes the
//! loop's thread's Python stack while that is blocked. No GIL is needed for this, since C code may
//! hold it all the time: a signal makes the interrupted thread write its own stack
//! (`faulthandler.register`, which is made for that). What the kernel says of the thread, and how
//! long the GIL was not to be had, tells which kind of blocking it is. When the callback ends, the
//! loop knows exactly how long it took, and reports it if that was the threshold or longer.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::lock::lock;
use rondel_reactor::{clock, threads};

use crate::errors::os_error;
use crate::event_loop::{Loop, State};
use crate::ffi::confined::Confined;

/// How long the interrupted thread may take to write its stack.
const WRITING: Duration = Duration::from_millis(100);

/// How many bytes of stacks are kept.
const LONGEST_FILE: u64 = 1 << 20;

/// A GIL that is had sooner was free.
const FREE: Duration = Duration::from_micros(50);

/// Python code lets go of the GIL sooner: after the switch interval of 5 ms, and some scheduling.
const SWITCH: Duration = Duration::from_millis(25);

/// What was seen of a callback while it blocked the loop.
struct Seen {
    started: u64,
    stack: String,
    doing: &'static str,
}

/// What the loop's thread and the watchdog's have in common.
pub struct Stamp {
    /// When the callback that runs now has started, in the clock's nanoseconds; 0 between callbacks.
    started: AtomicU64,
    /// The loop's thread, as the kernel knows it; 0 until the loop runs.
    thread: AtomicU32,
    threshold: u64,
    seen: Mutex<Option<Seen>>,
    stopping: Mutex<bool>,
    wake: Condvar,
}

impl Stamp {
    /// What has blocked the loop for at least the threshold by now: seconds, what the thread is
    /// doing, and its stack if it was taken. Needs no GIL.
    pub fn blocked(&self) -> Option<(f64, &'static str, String)> {
        let started = self.started.load(Ordering::Acquire);
        let taken = clock::now_ns().saturating_sub(started);
        if started == 0 || taken < self.threshold {
            return None;
        }
        let seen = lock(&self.seen);
        let seen = seen.as_ref().filter(|seen| seen.started == started);
        let (doing, stack) = seen.map_or(("unknown", ""), |seen| (seen.doing, &seen.stack));
        Some((clock::to_seconds(taken), doing, stack.to_owned()))
    }
}

/// What a loop that is watched holds.
pub struct Watching {
    stamp: Arc<Stamp>,
    report: Py<PyAny>,
    trace: Option<Py<PyAny>>,
}

impl Watching {
    /// The loop runs from now on, on this thread.
    pub fn enter(&self) {
        self.stamp.thread.store(threads::own_thread(), Ordering::Relaxed);
    }

    /// The callback that runs now is suspended (`None`), or goes on now.
    pub fn suspended(&self, since: Option<u64>) {
        self.stamp.started.store(since.unwrap_or(0), Ordering::Release);
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.report)?;
        visit.call(&self.trace)
    }
}

/// Runs a callback of a watched loop. `what` is the handle, or the object of native code.
#[cold]
pub fn watched(
    py: Python<'_>,
    state: &State,
    what: &Bound<'_, PyAny>,
    run: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    let stamp = state.watching.borrow().as_ref().map(|watching| watching.stamp.clone());
    let Some(stamp) = stamp else { return run() };
    let started = clock::now_ns();
    let own_started = state.own_ns();
    stamp.started.store(started, Ordering::Release);
    let result = run();
    stamp.started.store(0, Ordering::Release);
    let taken = state.own_ns() - own_started;
    // The callback may have ended the watch.
    let (report, trace) = match &*state.watching.borrow() {
        Some(Watching { report, trace, .. }) => {
            let report = (taken >= stamp.threshold).then(|| report.clone_ref(py));
            (report, trace.as_ref().map(|trace| trace.clone_ref(py)))
        }
        None => (None, None),
    };
    let traced = trace
        .map(|trace| trace.call1(py, (clock::to_seconds(started), clock::to_seconds(taken), what)));
    let result = result.and(traced.transpose().map(drop));
    let Some(report) = report else { return result };
    let seen = lock(&stamp.seen).take().filter(|seen| seen.started == started);
    let (doing, stack) = seen.map_or(("unknown", String::new()), |seen| (seen.doing, seen.stack));
    let reported = report.call1(py, (clock::to_seconds(taken), doing, stack, what));
    result.and(reported.map(drop))
}

/// Watches a loop from `start()` to `stop()`.
///
/// `report(seconds, doing, stack, what)` is called on the loop's thread after a callback that took
/// `threshold` seconds or longer: how long it took, what the thread was found doing ("gil": running
/// Python code; "held": in C code that holds the GIL; "native": computing without the GIL; else what
/// it waited for, as `Sampler` names it; "unknown" where it was not seen), its stack as
/// faulthandler writes it, and the handle, or the transport.
/// `trace(start, seconds, what)`, if given, is called after each callback, with the loop's time.
///
/// `signal` is the number of a signal that `faulthandler.register` was told to answer with the stack
/// of the thread alone, written to the file `path`. Raises OSError where that cannot be read.
#[pyclass(frozen, module = "rondel._rondel", name = "Watchdog")]
pub struct Watchdog {
    event_loop: Py<Loop>,
    report: Py<PyAny>,
    trace: Option<Py<PyAny>>,
    stamp: Arc<Stamp>,
    dog: Confined<RefCell<Option<Dog>>>,
    thread: Confined<RefCell<Option<JoinHandle<()>>>>,
}

#[pymethods]
impl Watchdog {
    /// Raises ValueError for a threshold that is not a positive number of seconds.
    #[new]
    #[pyo3(signature = (event_loop, threshold, signal, path, report, trace=None))]
    fn new(
        event_loop: Py<Loop>,
        threshold: f64,
        signal: i32,
        path: &str,
        report: Py<PyAny>,
        trace: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let threshold = Duration::try_from_secs_f64(threshold)
            .ok()
            .and_then(|threshold| u64::try_from(threshold.as_nanos()).ok())
            .filter(|threshold| *threshold > 0)
            .ok_or_else(|| {
                PyValueError::new_err("threshold must be a positive number of seconds")
            })?;
        let stamp = Arc::new(Stamp {
            started: AtomicU64::new(0),
            thread: AtomicU32::new(0),
            threshold,
            seen: Mutex::new(None),
            stopping: Mutex::new(false),
            wake: Condvar::new(),
        });
        let file = File::options().read(true).write(true).open(path)?;
        let dog = Dog { stamp: stamp.clone(), signal, file };
        Ok(Watchdog {
            event_loop,
            report,
            trace,
            stamp,
            dog: Confined::new(RefCell::new(Some(dog))),
            thread: Confined::new(RefCell::new(None)),
        })
    }

    /// Begin to watch; a loop that was watched by another is watched by this one then. Raises
    /// OSError where no thread can be started. A second call does nothing.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        let Some(dog) = self.dog.get(py).take() else { return Ok(()) };
        let thread = std::thread::Builder::new()
            .name("rondel-watchdog".into())
            .spawn(move || dog.run())
            .map_err(|error| os_error(py, &error))?;
        self.thread.get(py).replace(Some(thread));
        let state = self.event_loop.get().state(py);
        let watching = Watching {
            stamp: self.stamp.clone(),
            report: self.report.clone_ref(py),
            trace: self.trace.as_ref().map(|trace| trace.clone_ref(py)),
        };
        if state.thread_id.get() == Some(crate::ffi::thread_ident()) {
            watching.enter();
        }
        drop(state.watching.replace(Some(watching)));
        lock(&state.meter.stamp).replace(self.stamp.clone());
        state.observed.set(true);
        Ok(())
    }

    /// End the watch and its thread.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        drop(self.dog.get(py).take());
        let state = self.event_loop.get().state(py);
        let ours = state
            .watching
            .borrow()
            .as_ref()
            .is_some_and(|watching| Arc::ptr_eq(&watching.stamp, &self.stamp));
        if ours {
            state.observed.set(state.nesting.get());
            drop(state.watching.take());
            lock(&state.meter.stamp).take();
        }
        *lock(&self.stamp.stopping) = true;
        self.stamp.wake.notify_all();
        let thread = self.thread.get(py).take();
        match thread.map(|thread| py.detach(|| thread.join())) {
            Some(Err(payload)) => Err(crate::panic_error(payload.as_ref())),
            _ => Ok(()),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.report)?;
        visit.call(&self.trace)
    }
}

/// Held while a stack is taken.
static TAKING: Mutex<()> = Mutex::new(());

/// The watchdog's thread.
struct Dog {
    stamp: Arc<Stamp>,
    signal: i32,
    file: File,
}

impl Dog {
    fn run(self) {
        // Twice before the threshold, so that a callback just above it has been seen.
        let patience = Duration::from_nanos(self.stamp.threshold / 4);
        let mut last = 0;
        while !self.pause(patience) {
            let started = self.stamp.started.load(Ordering::Acquire);
            let taken = clock::now_ns().saturating_sub(started);
            if started != 0 && started != last && taken >= self.stamp.threshold / 2 {
                last = started;
                self.look(started);
            }
        }
    }

    /// Waits; true when it is time to stop.
    fn pause(&self, patience: Duration) -> bool {
        let stopping = lock(&self.stamp.stopping);
        let waited = self.stamp.wake.wait_timeout_while(stopping, patience, |stop| !*stop);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes the stack of the loop's thread, and finds out what it is doing.
    fn look(&self, started: u64) {
        let thread = self.stamp.thread.load(Ordering::Relaxed);
        let doing = threads::doing(thread).map_or("unknown", threads::Doing::name);
        let stack = self.stack(thread, started);
        // As long as the GIL has not been had, C code holds it.
        let computing = doing == "running";
        let told = if computing { "held" } else { doing };
        *lock(&self.stamp.seen) = Some(Seen { started, stack, doing: told });
        if computing {
            let asked = Instant::now();
            let waited = Python::attach(|_| asked.elapsed());
            if let Some(seen) = &mut *lock(&self.stamp.seen)
                && seen.started == started
                && self.stamp.started.load(Ordering::Acquire) == started
            {
                seen.doing = match waited {
                    waited if waited < FREE => "native",
                    waited if waited < SWITCH => "gil",
                    _ => "held",
                };
            }
        }
    }

    /// Has the thread write its stack, and reads it.
    fn stack(&self, thread: u32, started: u64) -> String {
        let mut text = String::new();
        if self.stamp.started.load(Ordering::Acquire) != started {
            return text;
        }
        // One at a time: all threads write to the same file.
        let _taking = lock(&TAKING);
        let Ok(mut read) = self.end_of_file() else { return text };
        if threads::signal(thread, self.signal).is_err() {
            return text;
        }
        let deadline = Instant::now() + WRITING;
        let mut block = [0; 4096];
        // Its last line has no mark: it is complete when nothing follows any more.
        while Instant::now() < deadline {
            match self.file.read_at(&mut block, read) {
                Ok(0) if !text.is_empty() => break,
                Ok(0) => {}
                Ok(count) => {
                    read += count as u64;
                    text.push_str(&String::from_utf8_lossy(&block[..count]));
                }
                Err(_) => break,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        text
    }

    /// Where the next stack begins. A long file is emptied first.
    fn end_of_file(&self) -> io::Result<u64> {
        let end = self.file.metadata()?.len();
        if end < LONGEST_FILE {
            return Ok(end);
        }
        self.file.set_len(0)?;
        Ok(0)
    }
}
