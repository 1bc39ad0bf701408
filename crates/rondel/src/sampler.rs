//! A thread that samples what this process's threads are doing and whether the GIL is held.
//!
//! `rondel.choose` asks it for the share of time in which the GIL was held, `rondel advise` for
//! where a script's time goes. At every tick it reads from the kernel what each thread waits for,
//! without the GIL, then takes the GIL and measures how long that took: a free one is had at once,
//! a held one after the holder's switch interval or when its C code returns.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rondel_reactor::lock::lock;
use rondel_reactor::threads;

/// A wait for the GIL that is longer met a thread that held it: taking a free one costs a lock.
const HELD: Duration = Duration::from_micros(20);

/// How long was sampled, and for how much of it the GIL was held.
#[derive(Clone, Copy, Default)]
struct Sampled {
    total: Duration,
    held: Duration,
}

#[derive(Default)]
struct Shared {
    stopping: Mutex<bool>,
    wake: Condvar,
}

type Outcome = (Sampled, Option<PyErr>);

/// Samples from `start()` to `stop()`, every `interval` seconds.
///
/// `report(seconds, held, threads)`, if given, is called on the sampler's thread at every tick: the
/// time since the last one, whether the GIL was held, and a list of (native thread id, what it was
/// doing) without the sampler itself.
/// What it was doing is one of "running", "sleeping", "polling", "socket", "file", "pipe", "lock",
/// "child" and "other".
#[pyclass(frozen, module = "rondel._rondel", name = "Sampler")]
pub struct Sampler {
    interval: Duration,
    report: Option<Py<PyAny>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<Outcome>>>,
}

#[pymethods]
impl Sampler {
    /// Raises ValueError for an interval that is not a positive number of seconds.
    #[new]
    #[pyo3(signature = (interval, report=None))]
    fn new(interval: f64, report: Option<Py<PyAny>>) -> PyResult<Self> {
        let interval = Duration::try_from_secs_f64(interval)
            .ok()
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| {
                PyValueError::new_err("interval must be a positive number of seconds")
            })?;
        Ok(Sampler { interval, report, shared: Arc::default(), thread: Mutex::new(None) })
    }

    /// Start the thread. Raises RuntimeError when it has been started, OSError where it cannot be.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        let mut thread = lock(&self.thread);
        if thread.is_some() || *lock(&self.shared.stopping) {
            return Err(PyRuntimeError::new_err("a sampler can be started once"));
        }
        let shared = Arc::clone(&self.shared);
        let report = self.report.as_ref().map(|report| report.clone_ref(py));
        let interval = self.interval;
        let spawned = std::thread::Builder::new()
            .name("rondel-sampler".into())
            .spawn(move || sample(&shared, interval, report.as_ref()))?;
        *thread = Some(spawned);
        Ok(())
    }

    /// Stop, and return the seconds sampled and the seconds in which the GIL was held. Raises what `report` raised.
    fn stop(&self, py: Python<'_>) -> PyResult<(f64, f64)> {
        *lock(&self.shared.stopping) = true;
        self.shared.wake.notify_all();
        let thread = lock(&self.thread).take();
        let Some(thread) = thread else {
            return Err(PyRuntimeError::new_err("the sampler is not running"));
        };
        // The thread needs the GIL to end.
        match py.detach(|| thread.join()) {
            Ok((sampled, None)) => Ok((sampled.total.as_secs_f64(), sampled.held.as_secs_f64())),
            Ok((_, Some(error))) => Err(error),
            Err(payload) => Err(crate::panic_error(payload.as_ref())),
        }
    }
}

/// The sampler's thread.
fn sample(shared: &Shared, interval: Duration, report: Option<&Py<PyAny>>) -> Outcome {
    let mut sampled = Sampled::default();
    let outcome = Python::attach(|py| {
        let me = threads::own_thread();
        let mut last = Instant::now();
        loop {
            let tick = py.detach(|| {
                if pause(shared, interval) {
                    return None;
                }
                let seen = if report.is_some() { threads::doing_but(me) } else { Vec::new() };
                Some((seen, Instant::now()))
            });
            let Some((seen, before)) = tick else { return Ok(()) };
            let now = Instant::now();
            let held = now - before > HELD;
            // A tick stands for the time since the last one: those that wait for the GIL are fewer.
            let seconds = now - last;
            last = now;
            sampled.total += seconds;
            sampled.held += if held { seconds } else { Duration::ZERO };
            if let Some(report) = report {
                let seen: Vec<_> = seen.into_iter().map(|(id, doing)| (id, doing.name())).collect();
                report.call1(py, (seconds.as_secs_f64(), held, seen))?;
            }
        }
    });
    (sampled, outcome.err())
}

/// Wait one interval; true when it is time to stop.
fn pause(shared: &Shared, interval: Duration) -> bool {
    let stopping = lock(&shared.stopping);
    let waited = shared.wake.wait_timeout_while(stopping, interval, |stopping| !*stopping);
    *waited.unwrap_or_else(PoisonError::into_inner).0
}
